"""Specs of generators: frozen latent diffusion models with their own text encoders (survey §2.5).

Each class is one of diffusers' pipelines; its defaults are the sizes of a published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal, Self

from model.spec.base import FieldError, check_at_least

STABLE_DIFFUSION_SCHEDULE = (0.00085, 0.012)
"""β of the first and the last time step of Stable Diffusion, whose square roots are equidistant."""
AUDIOLDM_SCHEDULE = (0.0015, 0.0195)
"""The same of AudioLDM and AudioLDM 2."""


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """What all generators have: autoencoder, UNet, noise schedule and a text encoder τ.

    Args:
        weights: a hub name or a folder of a diffusers checkpoint.
        latent_channels: of the autoencoder, each level of which but the last halves the sides.
        vae_widths: channels of the autoencoder's levels.
        widths: channels of the UNet's levels.
        blocks: residual blocks of a level.
        norm_groups: of the group norms.
        text_width, text_mlp_width, text_layers, text_heads: of the text encoder.
        text_tokens: length to which every text is padded.
        text_vocabulary: of the text encoder's tokenizer.
        prediction: target of the UNet: noise or, as in Stable Diffusion 2.1 at 768 pixels, v.
        min_snr: γ of min-SNR-γ weighting of eq. 5 (Hang et al. 2023, arXiv:2303.09556): an error at
            a signal-to-noise ratio above γ counts as at γ. None does not weight.
        steps: of denoising when a medium is generated, by default. The defaults here are those of
            NExT-GPT's inference code for all three of its generators.
        guidance_scale: of classifier-free guidance, likewise; 1 is without.
    """

    weights: str
    latent_channels: int = 4
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    norm_groups: int = 32
    text_width: int = 768
    text_mlp_width: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    text_tokens: int = 77
    text_vocabulary: int = 49_408
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    min_snr: float | None = None
    steps: int = 50
    guidance_scale: float = 7.5

    media: ClassVar[tuple[str, ...]]
    embeds_media: ClassVar[bool] = False
    """Whether the target of eq. 4 is made from the medium, not from its caption."""

    def __post_init__(self) -> None:
        """Raise FieldError for a value out of its range."""
        check_at_least(self, 0, "min_snr")
        if self.min_snr == 0:
            raise FieldError("min_snr", "0, want a positive number, or null for no weighting")
        check_at_least(self, 1, "steps", "guidance_scale")

    @property
    def streams(self) -> tuple[tuple[int, int], ...]:
        """Tokens and width of each sequence that conditions the UNet."""
        return ((self.text_tokens, self.text_width),)

    @property
    def condition_shape(self) -> tuple[int, int]:
        """Shape of τ(t), and hence of H; several streams are one row, one after the other."""
        if len(self.streams) == 1:
            return self.streams[0]
        return 1, sum(map(prod, self.streams))

    @property
    def caption_lengths(self) -> tuple[int, ...]:
        """Length of a caption's ids for each of the generator's tokenizers."""
        return (self.text_tokens,)

    @property
    def schedule(self) -> tuple[float, float]:
        """First and last β of the noise schedule, for random weights."""
        return STABLE_DIFFUSION_SCHEDULE

    @property
    def factor(self) -> int:
        """How many times smaller the sides of the latents are."""
        return int(2 ** (len(self.vae_widths) - 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one medium as `preprocess` returns it."""
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one medium."""
        raise NotImplementedError

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(
            self,
            vae_widths=(16, 32),
            widths=(16, 32),
            blocks=1,
            norm_groups=8,
            text_width=32,
            text_mlp_width=64,
            text_layers=2,
            text_heads=2,
            text_vocabulary=384,
        )


@dataclass(frozen=True, kw_only=True)
class PictureDiffusion(LatentDiffusion):
    """What the generators of pictures have. All levels of the UNet but the last attend to the text.

    Args:
        image_size: side of the square picture, in pixels.
        heads: of the UNet's attention, per level.
        linear_projection: whether linear layers, not convolutions, surround the UNet's transformer
            blocks; as from Stable Diffusion 2 on.
        text_activation: of the text encoder: CLIP's own, or `gelu` in OpenCLIP's.
    """

    image_size: int = 512
    heads: tuple[int, ...] = (8, 8, 8, 8)
    linear_projection: bool = False
    text_activation: Literal["quick_gelu", "gelu"] = "quick_gelu"

    media: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels and sides of the latents."""
        side = self.image_size // self.factor
        return self.latent_channels, side, side

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(super().tiny(), image_size=32, heads=(2, 2))


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(PictureDiffusion):
    """`StableDiffusionPipeline`: pictures, under the last hidden states of CLIP's text encoder.

    Rombach et al. 2022; sizes are Stable Diffusion 1.5's. Those of Stable Diffusion 2 and 2.1 are
    in `model/presets/generators.py`.
    """

    kind: Literal["stable_diffusion"] = "stable_diffusion"
    weights: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@dataclass(frozen=True, kw_only=True)
class UnClip(PictureDiffusion):
    """`StableUnCLIPImg2ImgPipeline`: pictures, under CLIP's embedding of a picture.

    Stable Diffusion 2.1 unCLIP, after Ramesh et al. 2022 (arXiv:2204.06125). The condition is added
    to the embedding of the time step; the text encoder reads the empty prompt. The target of eq. 4
    is the embedding of the picture itself (as in CoDi-2, whose ImageBind has the same space), so it
    needs the picture, and the caption is not used.

    Args:
        embedding_width: of the picture's embedding.
        clip_size, clip_patch, clip_width, clip_mlp_width, clip_layers, clip_heads: of the CLIP that
            makes it; the defaults are ViT-H/14's.
    """

    kind: Literal["unclip"] = "unclip"
    weights: str = "stabilityai/stable-diffusion-2-1-unclip"
    image_size: int = 768
    heads: tuple[int, ...] = (5, 10, 20, 20)
    linear_projection: bool = True
    text_activation: Literal["quick_gelu", "gelu"] = "gelu"
    text_width: int = 1024
    text_mlp_width: int = 4096
    text_layers: int = 23
    text_heads: int = 16
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    steps: int = 20  # with the scale, diffusers' defaults; CoDi-2's are not published
    guidance_scale: float = 10.0
    embedding_width: int = 1024
    clip_size: int = 224
    clip_patch: int = 14
    clip_width: int = 1280
    clip_mlp_width: int = 5120
    clip_layers: int = 32
    clip_heads: int = 16

    embeds_media: ClassVar[bool] = True

    @property
    def streams(self) -> tuple[tuple[int, int], ...]:
        """One vector, the embedding of a picture."""
        return ((1, self.embedding_width),)

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(
            super().tiny(),
            embedding_width=24,
            clip_size=16,
            clip_patch=8,
            clip_width=32,
            clip_mlp_width=64,
            clip_layers=2,
            clip_heads=2,
        )


@dataclass(frozen=True, kw_only=True)
class TextToVideo(LatentDiffusion):
    """`TextToVideoSDPipeline`: videos, under the last hidden states of CLIP's text encoder.

    ModelScopeT2V (Wang et al. 2023, arXiv:2308.06571); the defaults are Zeroscope v2 576w's. The
    autoencoder encodes frame by frame.

    Args:
        width, height: of a frame, in pixels.
        frames: of a video, sampled uniformly from a target.
        head_width: of the UNet's attention.
        text_activation: see `StableDiffusion`.
    """

    kind: Literal["text_to_video"] = "text_to_video"
    weights: str = "cerspense/zeroscope_v2_576w"
    width: int = 576
    height: int = 320
    frames: int = 24
    head_width: int = 64
    text_activation: Literal["quick_gelu", "gelu"] = "gelu"
    text_width: int = 1024
    text_mlp_width: int = 4096
    text_layers: int = 23
    text_heads: int = 16

    media: ClassVar[tuple[str, ...]] = ("video",)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one video."""
        return (self.frames, 3, self.height, self.width)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, frames and sides of the latents."""
        sides = self.height // self.factor, self.width // self.factor
        return (self.latent_channels, self.frames, *sides)

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(
            super().tiny(),
            widths=(32, 32),  # the first temporal transformer has eight heads of at least four
            width=32,
            height=16,
            frames=3,
            head_width=16,
        )


@dataclass(frozen=True, kw_only=True)
class SoundDiffusion(LatentDiffusion):
    """What the generators of sounds have; one frame of their log-mel spectrogram is 10 ms.

    Args:
        seconds: of a sound; those of a target are cut or padded to it.
        mel_bins: of the spectrogram.
        embedding_width: of CLAP's embedding of a text.
        heads: of the UNet's attention.
        vocoder_width: channels of the vocoder's first level.
    """

    latent_channels: int = 8
    vae_widths: tuple[int, ...] = (128, 256, 512)
    text_tokens: int = 512
    text_vocabulary: int = 50_265
    seconds: float = 10.24
    mel_bins: int = 64
    embedding_width: int = 512
    heads: int = 8
    vocoder_width: int = 1024

    media: ClassVar[tuple[str, ...]] = ("audio",)
    sample_rate: ClassVar[int] = 16_000
    hop: ClassVar[int] = 160

    @property
    def schedule(self) -> tuple[float, float]:
        """First and last β of the noise schedule, for random weights."""
        return AUDIOLDM_SCHEDULE

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the log-mel spectrogram of one sound; frames come before frequencies."""
        frames = round(self.seconds * self.sample_rate / self.hop)
        return (1, frames - frames % self.factor, self.mel_bins)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, frames and frequencies of the latents."""
        return self.latent_channels, self.shape[1] // self.factor, self.mel_bins // self.factor

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(
            super().tiny(),
            text_tokens=32,
            seconds=0.16,
            mel_bins=8,
            embedding_width=32,
            heads=2,
            vocoder_width=32,
        )


@dataclass(frozen=True, kw_only=True)
class AudioLdm(SoundDiffusion):
    """`AudioLDMPipeline`: sounds, under CLAP's embedding of a text (Liu et al. 2023).

    arXiv:2301.12503. The condition is one vector of length 1 (in the Euclidean norm), concatenated
    with the embedding of the time step. The defaults are AudioLDM-L-Full's, which NExT-GPT uses.
    """

    kind: Literal["audioldm"] = "audioldm"
    weights: str = "cvssp/audioldm-l-full"
    widths: tuple[int, ...] = (256, 512, 768, 1280)
    seconds: float = 5.12

    @property
    def streams(self) -> tuple[tuple[int, int], ...]:
        """One vector, the embedding of a text."""
        return ((1, self.embedding_width),)


@dataclass(frozen=True, kw_only=True)
class AudioLdm2(SoundDiffusion):
    """`AudioLDM2Pipeline`: sounds, under two sequences (Liu et al. 2023, arXiv:2308.05734).

    The first is of eight hidden states that GPT-2 generates from CLAP's embedding and T5's hidden
    states of a text, the second is of these hidden states of T5, of which a text has as many as
    tokens; the rest is zeros, which the UNet's attention does not see.

    Args:
        prompt_tokens, prompt_width, prompt_mlp_width, prompt_layers, prompt_heads,
            prompt_vocabulary: of T5; longer texts are cut (diffusers: at 128 or 512 tokens).
        generated_tokens, generator_width, generator_layers, generator_heads: of GPT-2.
    """

    kind: Literal["audioldm2"] = "audioldm2"
    weights: str = "cvssp/audioldm2"
    widths: tuple[int, ...] = (128, 256, 384, 640)
    steps: int = 200  # with the scale, the paper's (§4) and diffusers' defaults
    guidance_scale: float = 3.5
    prompt_tokens: int = 64
    prompt_width: int = 1024
    prompt_mlp_width: int = 2816
    prompt_layers: int = 24
    prompt_heads: int = 16
    prompt_vocabulary: int = 32_128
    generated_tokens: int = 8
    generator_width: int = 768
    generator_layers: int = 12
    generator_heads: int = 12

    @property
    def streams(self) -> tuple[tuple[int, int], ...]:
        """What GPT-2 generates, and T5's hidden states."""
        return (
            (self.generated_tokens, self.generator_width),
            (self.prompt_tokens, self.prompt_width),
        )

    @property
    def caption_lengths(self) -> tuple[int, ...]:
        """Length of a caption's ids for CLAP and for T5."""
        return self.text_tokens, self.prompt_tokens

    def tiny(self) -> Self:
        """Return the same wiring with small sizes."""
        return replace(
            super().tiny(),
            prompt_tokens=24,
            prompt_width=24,
            prompt_mlp_width=48,
            prompt_layers=2,
            prompt_heads=2,
            prompt_vocabulary=384,
            generated_tokens=3,
            generator_width=16,
            generator_layers=2,
            generator_heads=2,
        )


GeneratorSpec = StableDiffusion | UnClip | TextToVideo | AudioLdm | AudioLdm2
