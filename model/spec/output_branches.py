"""Output branches: signal tokens, output projector, frozen generator (survey §2.4, §2.5).

S_X → H_X = Θ_out(S_X) → LDM(H_X). Published settings are those of NExT-GPT (Wu et al. 2023,
arXiv:2309.05519) and of Stable Diffusion 1.5 (Rombach et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError


@dataclass(frozen=True, kw_only=True)
class OutputTransformer:
    """A small encoder-decoder from signal tokens to the generator's conditions (NExT-GPT, §3).

    Args:
        width: of the transformer; linear layers map from the backbone's width to the condition's.
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
    """A latent diffusion model for pictures with its own text encoder (Rombach et al. 2022).

    Args:
        weights: a hub name or a folder of a diffusers checkpoint; sizes are Stable Diffusion 1.5's.
        image_size: side of the square picture, in pixels.
        latent_channels: of the autoencoder, each level of which but the last halves the sides.
        vae_widths: channels of the autoencoder's levels.
        widths: channels of the UNet's levels; all but the last have cross-attention to the text.
        blocks: residual blocks of a level.
        heads: of the UNet's attention.
        norm_groups: of the group norms.
        text_width, text_mlp_width, text_layers, text_heads: of CLIP's text encoder, τ.
        text_tokens: length to which every text is padded.
        text_vocabulary: of CLIP's tokenizer.
        prediction: target of the UNet: noise or, as in Stable Diffusion 2.1 at 768 pixels, v.
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
    def condition_shape(self) -> tuple[int, int]:
        """Tokens and width of the generator's condition: of τ(t), and hence of H."""
        return self.text_tokens, self.text_width

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
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
    """One modality's output branch: signal tokens of the backbone condition a generator.

    Args:
        modality: of the generated media.
        signals: number of signal tokens per medium; their input embeddings and output rows are new
            weights, those of the vocabulary stay unchanged.
        projector: from the backbone's hidden states at the signal tokens to the generator's
            conditions.
        generator: with its own text encoder, both frozen.
    """

    modality: Literal["image"] = "image"
    signals: int = 4
    projector: OutputTransformer = OutputTransformer()
    generator: StableDiffusion = StableDiffusion()

    def __post_init__(self) -> None:
        """Raise SpecError where the components do not fit each other."""
        where = f"output branch {self.modality!r}"
        if self.modality not in self.generator.media:
            raise SpecError(
                f"{where}: the generator {self.generator.kind!r} generates "
                f"{', '.join(self.generator.media)}, not {self.modality}"
            )
        if self.signals < 1:
            raise SpecError(f"{where}: signals {self.signals}, must be at least 1")

    @property
    def kind(self) -> str:
        """Kind of the generated media, as distinct from input media: `to_image`."""
        return f"to_{self.modality}"

    def tiny(self) -> OutputBranchSpec:
        """Return the same wiring with small components."""
        return replace(self, projector=self.projector.tiny(), generator=self.generator.tiny())


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Loss weights of a stage with generated media, in addition to the text loss (survey eq. 2).

    Args:
        align: weight of eq. 4, ‖H_X − τ_X(t)‖²; needs captions only.
        denoise: weight of eq. 5, E‖ε − ε_X(z_t, t, H_X)‖²; needs the media, and a forward and
            backward pass of the generator. At 0 only the generator's text encoder is loaded.
    """

    align: float = 1.0
    denoise: float = 1.0

    def __post_init__(self) -> None:
        """Raise SpecError unless both weights are non-negative and one is positive."""
        if min(self.align, self.denoise) < 0 or not self.align + self.denoise:
            raise SpecError(
                f"generation: align {self.align}, denoise {self.denoise}; "
                "both must be at least 0 and one of them positive"
            )
