"""Specs of audio encoders (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Whisper:
    """The encoder of Whisper (Radford et al. 2022, arXiv:2212.04356).

    Defaults: large-v2.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        seconds: duration of the input; at most 30 for the published weights.
        mel_bins: 80; large-v3 has 128.
    """

    kind: Literal["whisper"] = "whisper"
    weights: str
    width: int = 1280
    mlp_width: int = 5120
    layers: int = 32
    heads: int = 20
    seconds: int = 30
    mel_bins: int = 80

    encodes_jointly: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ("audio",)
    segments: ClassVar[int] = 1
    sample_rate: ClassVar[int] = 16_000

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the log-mel spectrogram, one frame per 10 ms."""
        return (self.mel_bins, 100 * self.seconds)

    @property
    def tokens(self) -> int:
        """Tokens that the projector receives: the second convolution has stride 2."""
        return self.shape[1] // 2

    def tiny(self) -> Whisper:
        """Return the same encoder with small sizes."""
        return replace(self, width=32, mlp_width=64, layers=2, heads=2, seconds=1)


@dataclass(frozen=True, kw_only=True)
class Hubert:
    """HuBERT (Hsu et al. 2021, arXiv:2106.07447), a transformer on convolutional features.

    Defaults: Large. X-Large has `width=1280, mlp_width=5120, layers=48`; Base
    `width=768, mlp_width=3072, layers=12, heads=12, norm_first=False`.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        norm_first: pre-norm layers, a normalised waveform and layer norms in the convolutions, as
            in Large and X-Large.
        conv_width: channels of the convolutions.
        position_kernel: kernel size of the convolutional position embedding, in tokens.
        seconds: duration of the input.
    """

    kind: Literal["hubert"] = "hubert"
    weights: str
    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16
    norm_first: bool = True
    conv_width: int = 512
    position_kernel: int = 128
    seconds: float = 10.0

    encodes_jointly: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ("audio",)
    segments: ClassVar[int] = 1
    sample_rate: ClassVar[int] = 16_000
    kernels: ClassVar[tuple[int, ...]] = (10, 3, 3, 3, 3, 2, 2)
    strides: ClassVar[tuple[int, ...]] = (5, 2, 2, 2, 2, 2, 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the waveform."""
        return (round(self.seconds * self.sample_rate),)

    @property
    def tokens(self) -> int:
        """Tokens that the projector receives, about one per 20 ms."""
        length = self.shape[0]
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    def tiny(self) -> Hubert:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            conv_width=32,
            position_kernel=16,
            seconds=0.5,
        )


@dataclass(frozen=True, kw_only=True)
class Beats:
    """BEATs (Chen et al. 2022, arXiv:2212.09058) on clips of log-mel frames.

    Defaults: the published size, and two clips of 5.12 s, as X-InstructBLIP splits its audio.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` of a BEATs checkpoint.
        clips: consecutive clips that a sound is split into.
        frames: of a clip, 10 ms each; a multiple of `patch`.
        patch: side of a patch of the spectrogram, in frames and in mel bins.
        patch_width: of a patch embedding before it is projected to the transformer's width.
        position_kernel: kernel size of the convolutional position embedding, in tokens.
    """

    kind: Literal["beats"] = "beats"
    weights: str
    clips: int = 2
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    mel_bins: int = 128
    frames: int = 512
    patch: int = 16
    patch_width: int = 512
    position_kernel: int = 128

    media: ClassVar[tuple[str, ...]] = ("audio",)
    encodes_jointly: ClassVar[bool] = False
    sample_rate: ClassVar[int] = 16_000

    @property
    def segments(self) -> int:
        """The clips."""
        return self.clips

    @property
    def seconds(self) -> float:
        """Duration of all clips together."""
        return self.clips * self.frames * 0.01

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the spectrogram of one clip."""
        return (self.frames, self.mel_bins)

    @property
    def tokens(self) -> int:
        """Tokens per clip that the projector receives."""
        return (self.frames // self.patch) * (self.mel_bins // self.patch)

    def tiny(self) -> Beats:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            frames=4 * self.patch,
            mel_bins=4 * self.patch,
            patch_width=16,
            position_kernel=16,
        )


@dataclass(frozen=True, kw_only=True)
class CFormer:
    """X-LLM's speech encoder with its C-Former (Chen et al. 2023, arXiv:2305.04160).

    The speech encoder is a Conformer trained for speech recognition (Han et al. 2023,
    arXiv:2301.13003); the C-Former is continuous integrate-and-fire, which reduces the frames to
    about one vector per word, and a transformer initialised from BERT. X-LLM's weights are not
    published. Its code gives the widths, 512 and BERT's; the Conformer's other sizes are those of
    Han et al., scaled to that width.

    Args:
        weights: `FOLDER/FILE` with our names: the speech encoder and the integrate-and-fire.
        transformer: a hub name or a folder with BERT.
        seconds: duration of the input.
        tokens: vectors that are fired per sound (a variable number in the published code).
        speech_width, speech_mlp_width, speech_layers, speech_heads: of the Conformer.
        conv_channels: of the convolution before it, which halves the number of frames.
        conv_kernel: kernel size of the Conformer's convolutions, in tokens.
        pool_after: layers after which the number of frames is halved.
        width, mlp_width, layers, heads: of the transformer.
    """

    kind: Literal["c_former"] = "c_former"
    weights: str
    transformer: str = "google-bert/bert-base-chinese"
    seconds: float = 10.0
    tokens: int = 64
    mel_bins: int = 80
    speech_width: int = 512
    speech_mlp_width: int = 2048
    speech_layers: int = 15
    speech_heads: int = 8
    conv_channels: int = 128
    conv_kernel: int = 15
    pool_after: tuple[int, ...] = (5, 10)
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12

    encodes_jointly: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ("audio",)
    segments: ClassVar[int] = 1
    sample_rate: ClassVar[int] = 16_000

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the log-mel spectrogram, one frame per 10 ms."""
        return (round(100 * self.seconds), self.mel_bins)

    def tiny(self) -> CFormer:
        """Return the same encoder with small sizes."""
        return replace(
            self,
            seconds=1.0,
            tokens=4,
            mel_bins=40,
            speech_width=32,
            speech_mlp_width=64,
            speech_layers=3,
            speech_heads=2,
            conv_channels=8,
            conv_kernel=5,
            pool_after=(1, 2),
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
        )
