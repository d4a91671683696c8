"""Input projectors: features to tokens of the backbone's width (survey §2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import ProjectorShape, SpecError


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Linear layers with GELU between them, token by token (LLaVA-1.5: `mlp2x_gelu`, depth 2).

    Args:
        depth: how many linear layers.
        norm: whether a layer norm stands behind each GELU (CoDi-2, Tang et al. 2023).
    """

    kind: Literal["mlp"] = "mlp"
    depth: int = 2
    norm: bool = False

    reads_text: ClassVar[bool] = False

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: as many as the encoder's."""
        return ends.parts * ends.tokens

    def tiny(self) -> Mlp:
        """Return itself: its widths are its neighbours'."""
        return self


@dataclass(frozen=True, kw_only=True)
class Join:
    """Neighbouring tokens of a row laid end to end, then a linear layer (MiniGPT-v2).

    Chen et al. 2023 (arXiv:2310.09478), §2: four at a time, which cuts 1024 tokens to 256.

    Args:
        neighbours: tokens that become one, adjacent in raster order.
    """

    kind: Literal["join"] = "join"
    neighbours: int = 4

    reads_text: ClassVar[bool] = False

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium.

        Raises:
            SpecError: a part's tokens cannot be divided so.
        """
        if ends.tokens % self.neighbours:
            raise SpecError(
                f"projector {self.kind!r}: {ends.tokens} tokens cannot be joined by "
                f"{self.neighbours}; an encoder's class token must be left out"
            )
        return ends.parts * ends.tokens // self.neighbours

    def tiny(self) -> Join:
        """Return itself: its widths are its neighbours'."""
        return self


@dataclass(frozen=True, kw_only=True)
class Ldp:
    """The lightweight downsample projectors of MobileVLM.

    Chu et al. 2023 (arXiv:2312.16886), §3.3, and 2024 (arXiv:2402.03766), §3.2.

    Args:
        version: 1 has two depthwise-separable blocks, 2 average pooling and a positional
            convolution.
        stride: a part's square of tokens shrinks by it on either side; 2 makes 144 tokens of 576.
    """

    kind: Literal["ldp"] = "ldp"
    version: Literal[1, 2] = 1
    stride: int = 2

    reads_text: ClassVar[bool] = False

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium.

        Raises:
            SpecError: a part's tokens are no square, or one that cannot be divided so.
        """
        side = square_side(ends.tokens, self.kind)
        if side % self.stride:
            raise SpecError(
                f"projector {self.kind!r}: a side of {side} tokens, want a multiple of "
                f"the stride {self.stride}"
            )
        return ends.parts * (side // self.stride) ** 2

    def tiny(self) -> Ldp:
        """Return itself: its widths are its neighbours'."""
        return self


@dataclass(frozen=True, kw_only=True)
class PerceiverResampler:
    """Latents that read all frames of a medium through cross-attention (Flamingo).

    Alayrac et al. 2022 (arXiv:2204.14198), §3.1 and appendices A.1.1 and B.1. A linear layer leads
    in where the encoder's width is another, and one leads out where the width handed on is.

    Args:
        latents: learned tokens, and tokens handed on.
        width, layers, heads: of the resampler; its feed-forward layers are four times as wide.
        head_width: the published total of 194M parameters (table 5) follows from 128.
        activation: squared ReLU in the paper, GELU in OpenFlamingo.
        frames: rows of the learned time embeddings; the first is a picture's.
    """

    kind: Literal["perceiver_resampler"] = "perceiver_resampler"
    latents: int = 64
    width: int = 1536
    layers: int = 6
    heads: int = 16
    head_width: int = 128
    activation: Literal["squared_relu", "gelu"] = "squared_relu"
    frames: int = 8

    reads_text: ClassVar[bool] = False

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: the latents, whatever its length.

        Raises:
            SpecError: more frames than time embeddings.
        """
        check_frames(ends.parts, self.frames, self.kind)
        return self.latents

    def tiny(self) -> PerceiverResampler:
        """Return the same architecture with small sizes."""
        return replace(self, latents=4, width=32, layers=2, heads=2, head_width=16)


@dataclass(frozen=True, kw_only=True)
class QwenResampler:
    """A square of queries, one cross-attention layer with 2-D positions (Qwen-VL).

    Bai et al. 2023 (arXiv:2308.12966), §2.1. It is as wide as the backbone.

    Args:
        queries: a square number of learned tokens, and tokens handed to the backbone for each part.
        head_width: the backbone's width divided by it is the number of heads.
    """

    kind: Literal["qwen_resampler"] = "qwen_resampler"
    queries: int = 256
    head_width: int = 128

    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError where the queries are no square."""
        square_side(self.queries, self.kind)

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: the queries, for each part.

        Raises:
            SpecError: a part's tokens are no square.
        """
        square_side(ends.tokens, self.kind)
        return ends.parts * self.queries

    def tiny(self) -> QwenResampler:
        """Return the same architecture with small sizes."""
        return replace(self, queries=4, head_width=16)


@dataclass(frozen=True, kw_only=True)
class Abstractor:
    """Queries that read features and themselves, and a learned end token (mPLUG-Owl).

    Ye et al. 2023 (arXiv:2304.14178), §3.1; sizes of the published weights. It is as wide as the
    encoder.

    Args:
        queries: learned tokens; with the end token they are handed to the backbone for each part.
        mlp_width: of the SwiGLU layers.
        dropout: of the attention, in training.
        temporal: whether all parts of a medium are read at once, those of several also by as many
            temporal queries, which a linear layer of their own adds to the others (mPLUG-Owl's
            release for videos).
    """

    kind: Literal["abstractor"] = "abstractor"
    queries: int = 64
    mlp_width: int = 2816
    layers: int = 6
    heads: int = 16
    dropout: float = 0.1
    temporal: bool = False

    reads_text: ClassVar[bool] = False

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: queries and end, for each part or once."""
        return (self.queries + 1) * (1 if self.temporal else ends.parts)

    def tiny(self) -> Abstractor:
        """Return the same architecture with small sizes."""
        return replace(self, queries=4, mlp_width=64, layers=2, heads=2)


def square_side(tokens: int, kind: str) -> int:
    """Return the side of a square of tokens.

    Raises:
        SpecError: they make none; an encoder's class token is the likeliest cause.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise SpecError(
            f"projector {kind!r}: {tokens} tokens are no square; an encoder's class token must be "
            "left out"
        )
    return side


def check_frames(parts: int, limit: int, kind: str) -> None:
    """Raise SpecError where a medium has more parts than there are position embeddings."""
    if parts > limit:
        raise SpecError(f"projector {kind!r}: {parts} parts, it has positions for {limit}")
