"""Ways out: signal tokens of the backbone, output projector, frozen generator (survey §2.4, §2.5).

S_X → H_X = Θ_out(S_X) → LDM(H_X). Published settings are those of NExT-GPT (Wu et al. 2023,
arXiv:2309.05519) and of Stable Diffusion 1.5 (Rombach et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError


@dataclass(frozen=True, kw_only=True)
class OutputTransformer:
    """A small encoder-decoder from signals to the generator's conditions (NExT-GPT, §3).

    Args:
        width: inside; a linear layer leads there from the backbone, one from there on.
        layers: of the encoder, and of the decoder.
        heads: of attention; the feed-forward layers are four times as wide.
    """

    kind: Literal["output_transformer"] = "output_transformer"
    width: int = 512
    layers: int = 4
    heads: int = 4

    def tiny(self) -> OutputTransformer:
        """Return the same wiring with small sizes."""
        return replace(self, width=32, layers=1, heads=2)


@dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """A latent diffusion model of pictures with its own text encoder (Rombach et al. 2022).

    Args:
        weights: a hub name or a folder of a diffusers checkpoint; sizes are Stable Diffusion 1.5's.
        image_size: side of the square picture, in pixels.
        latent_channels: of the autoencoder; each of its levels but the last halves the sides.
        vae_widths: channels of the autoencoder's levels.
        widths: channels of the UNet's levels; all but the last attend to the text.
        blocks: residual blocks of a level.
        heads: of the UNet's attention.
        norm_groups: of the group norms.
        text_width, text_mlp_width, text_layers, text_heads: of CLIP's text encoder, τ.
        text_tokens: to which every text is padded.
        text_vocabulary: of CLIP's tokenizer.
        prediction: what the UNet tells: the noise, or, as in Stable Diffusion 2.1 at 768 pixels, v.
    """

    kind: Literal["stable_diffusion"] = "stable_diffusion"
    weights: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    image_size: int = 512
    latent_channels: int = 4
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    heads: int = 8
    norm_groups: int = 32
    text_width: int = 768
    text_mlp_width: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    text_tokens: int = 77
    text_vocabulary: int = 49408
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    media: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def conditions(self) -> tuple[int, int]:
        """Tokens and width of what the generator is told: of τ(t), and so of H."""
        return self.text_tokens, self.text_width

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

    @property
    def latents(self) -> tuple[int, int, int]:
        """Shape of the latents of one picture."""
        side = self.image_size // 2 ** (len(self.vae_widths) - 1)
        return self.latent_channels, side, side

    def tiny(self) -> StableDiffusion:
        """Return the same wiring with small sizes."""
        return replace(
            self,
            image_size=32,
            vae_widths=(16, 32),
            widths=(16, 32),
            blocks=1,
            heads=2,
            norm_groups=8,
            text_width=32,
            text_mlp_width=64,
            text_layers=2,
            text_heads=2,
            text_vocabulary=384,
        )


@dataclass(frozen=True, kw_only=True)
class OutputBranchSpec:
    """One modality's way out: the backbone says signals, a generator draws what they mean.

    Args:
        modality: what comes out.
        signals: tokens that the backbone says for one medium; their embeddings and their rows of
            the output matrix are new, the vocabulary's own stay as they are.
        projector: from what the backbone thinks at the signals to the generator's conditions.
        generator: with its own text encoder, both frozen.
    """

    modality: Literal["image"] = "image"
    signals: int = 4
    projector: OutputTransformer = OutputTransformer()
    generator: StableDiffusion = StableDiffusion()

    def __post_init__(self) -> None:
        """Raise SpecError where the parts cannot go together."""
        where = f"output slot {self.modality!r}"
        if self.modality not in self.generator.media:
            raise SpecError(
                f"{where}: the generator {self.generator.kind!r} makes "
                f"{', '.join(self.generator.media)}, not {self.modality}"
            )
        if self.signals < 1:
            raise SpecError(f"{where}: signals {self.signals}, want 1 or more")

    @property
    def kind(self) -> str:
        """The name of media that come out, beside those that go in: `to_image`."""
        return f"to_{self.modality}"

    def tiny(self) -> OutputBranchSpec:
        """Return the same wiring with small parts."""
        return replace(self, projector=self.projector.tiny(), generator=self.generator.tiny())


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a stage learns of drawing, beside the text with its signals (survey eq. 2).

    Args:
        align: weight of eq. 4, ‖H_X − τ_X(t)‖²: it needs captions only.
        denoise: weight of eq. 5, E‖ε − ε_X(z_t, t, H_X)‖²: it needs the media, and a pass through
            the generator and back. At 0 neither media nor generator but its text encoder are used.
    """

    align: float = 1.0
    denoise: float = 1.0

    def __post_init__(self) -> None:
        """Raise SpecError for weights that make no sense."""
        if min(self.align, self.denoise) < 0 or not self.align + self.denoise:
            raise SpecError(
                f"generation: align {self.align}, denoise {self.denoise}; "
                "want none below 0 and one above it"
            )
