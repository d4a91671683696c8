"""Specs of encoders that transformers' Auto classes build, with their configurations.

The configuration is that of the encoder alone, without what says nothing about the model.
`model.compose` makes such a spec from a folder or a hub name.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from model.spec.base import SpecError
from model.spec.image import PictureSpec

TINY_WIDTH = 32
_TINY_SIZES: Mapping[str, int] = {
    "embed_dim": 8,
    "embedding_size": 8,
    "hidden_size": TINY_WIDTH,
    "d_model": TINY_WIDTH,
    "intermediate_size": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_patches": 4,
    "window_size": 2,
}
"""Sizes in the configurations of transformers' classes, and their values at `--scale tiny`."""
_TINY_LISTS: Mapping[str, int] = {"depths": 1, "num_heads": 1, "conv_dim": 32, "hidden_sizes": 8}
"""The same for lists with one number a stage."""

AST, AST_PREFIX = "audio-spectrogram-transformer", 2
"""The Audio Spectrogram Transformer, with a class and a distillation token."""
WHISPER_LIKE: Mapping[str, int] = {"whisper": 2, "qwen2_audio_encoder": 4}
"""Models with Whisper's log-mel spectrogram → frames per token."""

Select = Literal["patches", "cls_patches", "cls", "all"]


@dataclass(frozen=True, kw_only=True)
class HfVision(PictureSpec):
    """Any vision encoder that transformers' AutoModel knows: CLIP, SigLIP, DINOv2, ViT, Swin.

    Args:
        weights: a hub name or a folder of a transformers checkpoint: of the encoder, or of a model
            with an image and a text tower.
        config: of the encoder, `model_type` among its fields.
        width: of its features.
        grid: rows and columns of the patches for pictures of the processor's size.
        prefix: tokens before the patches: class and register tokens.
        feature_layer: index of the hidden state that is returned, as in transformers'
            `hidden_states`: -2 is the last but one. None is `last_hidden_state`, after the norm
            that most classes have.
        select: which tokens are returned; `cls_patches` leaves register tokens out.
    """

    kind: Literal["hf_vision"] = "hf_vision"
    weights: str
    config: dict[str, Any] = field(hash=False)
    width: int
    grid: tuple[int, int]
    prefix: int = 0
    feature_layer: int | None = None
    select: Select = "patches"

    def __post_init__(self) -> None:
        """Raise SpecError where the class token is selected but does not exist."""
        model_type_of(self.config, self.kind)
        if self.select in ("cls", "cls_patches") and not self.prefix:
            raise SpecError(
                f"encoder 'hf_vision': {self.model_type!r} has no class token; "
                "want select 'patches'"
            )

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture, such as `siglip_vision_model`."""
        return model_type_of(self.config, self.kind)

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives."""
        patches = self.grid[0] * self.grid[1]
        return {
            "patches": patches,
            "cls_patches": 1 + patches,
            "cls": 1,
            "all": self.prefix + patches,
        }[self.select]

    def tiny(self) -> HfVision:
        """Return the same architecture with small sizes, for pictures of 2 x 2 patches."""
        rows, columns = self.grid
        height, width = self.processor.size
        side = 2 * min(height // rows, width // columns)
        config = tiny_config(self.config)
        if "image_size" in config:
            config["image_size"] = side
        return replace(
            self,
            config=config,
            processor=self.processor.at(side),
            grid=(2, 2),
            width=_tiny_width(config, self.config, self.width),
            # The class has fewer layers now.
            feature_layer=self.feature_layer and max(self.feature_layer, -2),
        )


@dataclass(frozen=True, kw_only=True)
class HfAudio:
    """Encoders of sound of transformers: Whisper, wav2vec 2.0, HuBERT, WavLM, AST.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        config: of the model, `model_type` among its fields.
        extractor: configuration of its feature extractor, `feature_extractor_type` and
            `sampling_rate` among its fields.
        seconds: duration of the input; position embeddings of weights for longer sounds are
            cropped.
        clips: consecutive ones of `seconds` each, which a sound is split into.
        feature_layer: see `HfVision`.
    """

    kind: Literal["hf_audio"] = "hf_audio"
    weights: str
    config: dict[str, Any] = field(hash=False)
    extractor: dict[str, Any] = field(hash=False)
    seconds: float
    clips: int = 1
    feature_layer: int | None = None

    media: ClassVar[tuple[str, ...]] = ("audio",)
    encodes_jointly: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError for an architecture whose input is not known here, or for no tokens."""
        if self.tokens < 1:
            raise SpecError(f"encoder 'hf_audio': {self.seconds} seconds are too short")

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture, such as `whisper`."""
        return model_type_of(self.config, self.kind)

    @property
    def segments(self) -> int:
        """The clips."""
        return self.clips

    @property
    def sample_rate(self) -> int:
        """Of the waveform, in hertz."""
        return int(self.extractor["sampling_rate"])

    @property
    def samples(self) -> int:
        """Samples of one clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def width(self) -> int:
        """Of a token."""
        return int(self.config.get("d_model") or self.config["hidden_size"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input of one clip: samples, mel bins and frames, or frames and mel bins."""
        if self.takes_waveform:
            return (self.samples,)
        if self.model_type in WHISPER_LIKE:
            return (self.config["num_mel_bins"], self.samples // self.extractor["hop_length"])
        return (self.frames, self.config["num_mel_bins"])

    @property
    def frames(self) -> int:
        """Frames of a spectrogram with a frame per 10 ms."""
        return round(100 * self.seconds)

    @property
    def takes_waveform(self) -> bool:
        """Whether the encoder's first layers are convolutions over the waveform."""
        return "conv_kernel" in self.config and "conv_stride" in self.config

    @property
    def tokens(self) -> int:
        """Tokens per clip that the projector receives."""
        if self.takes_waveform:
            length = self.samples
            sizes = zip(self.config["conv_kernel"], self.config["conv_stride"], strict=True)
            for kernel, stride in sizes:
                length = (length - kernel) // stride + 1
            return length
        if self.model_type in WHISPER_LIKE:
            return self.shape[1] // WHISPER_LIKE[self.model_type]
        if self.model_type == AST:
            rows, columns = self.spectrogram_grid
            return rows * columns + AST_PREFIX
        raise SpecError(
            f"encoder 'hf_audio': {self.model_type!r} is not supported; want {AST}, "
            f"{', '.join(WHISPER_LIKE)} or one of the wav2vec 2.0 family"
        )

    @property
    def spectrogram_grid(self) -> tuple[int, int]:
        """Patches of AST's spectrogram over mel bins, and over frames."""
        patch = self.config["patch_size"]
        strides = self.config["frequency_stride"], self.config["time_stride"]
        bins, frames = (
            (length - patch) // stride + 1
            for length, stride in zip((self.shape[1], self.shape[0]), strides, strict=True)
        )
        return bins, frames

    def tiny(self) -> HfAudio:
        """Return the same architecture with small sizes, for sounds of one second."""
        return replace(self, config=tiny_config(self.config), seconds=min(self.seconds, 1.0))


def model_type_of(config: Mapping[str, Any], kind: str) -> str:
    """Return a configuration's architecture; raises SpecError if it names none."""
    if not isinstance(config.get("model_type"), str):
        raise SpecError(f"encoder {kind!r}: config has no model_type; want that of a config.json")
    return str(config["model_type"])


def tiny_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of the same architecture with small sizes."""
    tiny = deepcopy(dict(config))
    for name, value in config.items():
        if name in _TINY_SIZES and isinstance(value, int):
            tiny[name] = _TINY_SIZES[name]
        elif name in _TINY_LISTS and isinstance(value, list | tuple):
            tiny[name] = [_TINY_LISTS[name]] * len(value)
    if "hidden_sizes" in tiny:
        tiny["hidden_sizes"][-1] = TINY_WIDTH
    return tiny


def _tiny_width(tiny: Mapping[str, Any], config: Mapping[str, Any], width: int) -> int:
    """Return the width of a tiny encoder's features; Swin's grows with each stage."""
    if "hidden_size" in tiny or "hidden_sizes" in tiny:
        return TINY_WIDTH
    factor: int = width // config["embed_dim"]
    return factor * int(tiny["embed_dim"])


SIZES = frozenset(
    {
        *_TINY_SIZES,
        *_TINY_LISTS,
        "conv_kernel",
        "conv_stride",
        "frequency_stride",
        "image_size",
        "max_length",
        "max_source_positions",
        "num_mel_bins",
        "patch_size",
        "time_stride",
    }
)
"""Fields of a configuration that a spec always has, even where they are transformers' defaults."""
