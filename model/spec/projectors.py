"""Specs of input projectors: features to tokens of the backbone's width (survey §2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import ProjectorShape, SpecError

Shorten = Literal["none", "stack", "pool", "pool_grid", "pixel_shuffle"]
GRIDS = ("pool_grid", "pixel_shuffle")
"""Ways to shorten that merge squares of patches."""


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Linear layers with GELU between them, token by token (LLaVA-1.5: `mlp2x_gelu`, depth 2).

    Args:
        depth: number of linear layers.
        norm: whether a layer norm follows each GELU (CoDi-2, Tang et al. 2023).
        shorten: how tokens of a segment are merged before the first layer. `stack` concatenates
            adjacent ones (SLAM-LLM, Ma et al. 2024, arXiv:2402.08846: five frames of a
            sound); `pool` averages them (Qwen2-Audio, Chu et al. 2024, arXiv:2407.10759, §2: two);
            `pool_grid` averages squares of patches (Gemma 3, 2025, arXiv:2503.19786: 4 x 4);
            `pixel_shuffle` concatenates squares of patches (InternVL 1.5, Chen et al. 2024,
            arXiv:2404.16821: 2 x 2).
        factor: number of tokens that become one, or the side of their square. A group at the end
            that is not full is filled with zeros by `stack`, and averaged without them by `pool`.
        norm_input: whether a layer norm precedes the first layer (InternVL 1.5).
    """

    kind: Literal["mlp"] = "mlp"
    depth: int = 2
    norm: bool = False
    shorten: Shorten = "none"
    factor: int = 1
    norm_input: bool = False

    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError unless tokens are merged exactly where `factor` is above one."""
        if (self.factor > 1) != (self.shorten != "none"):
            raise SpecError(
                f"projector 'mlp': shorten {self.shorten!r} with factor {self.factor}; want "
                "'stack', 'pool', 'pool_grid' or 'pixel_shuffle' and a factor of at least 2"
            )

    @property
    def merged(self) -> int:
        """Number of tokens whose features are concatenated."""
        return {"stack": self.factor, "pixel_shuffle": self.factor**2}.get(self.shorten, 1)

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives.

        Raises:
            SpecError: the tokens of a segment form no square grid that `factor` divides.
        """
        if self.shorten not in GRIDS:
            return shape.segments * math.ceil(shape.tokens / self.factor)
        return shape.segments * (divided_side(shape.tokens, self.factor, self.kind) ** 2)

    def tiny(self) -> Mlp:
        """Return itself: its widths are those of encoder and backbone."""
        return self


@dataclass(frozen=True, kw_only=True)
class TokenConcat:
    """Adjacent tokens concatenated into one, then a linear layer (MiniGPT-v2).

    Chen et al. 2023 (arXiv:2310.09478), §2: groups of four, which reduces 1024 tokens to 256.

    Args:
        group_size: tokens that become one, adjacent in raster order.
    """

    kind: Literal["token_concat"] = "token_concat"
    group_size: int = 4

    reads_text: ClassVar[bool] = False

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives.

        Raises:
            SpecError: the tokens of a segment cannot be divided into such groups.
        """
        if shape.tokens % self.group_size:
            raise SpecError(
                f"projector {self.kind!r}: {shape.tokens} tokens are no multiple of group_size "
                f"{self.group_size}; the encoder must not return its class token"
            )
        return shape.segments * shape.tokens // self.group_size

    def tiny(self) -> TokenConcat:
        """Return itself: its widths are those of encoder and backbone."""
        return self


@dataclass(frozen=True, kw_only=True)
class Ldp:
    """MobileVLM's lightweight downsample projectors (LDP).

    Chu et al. 2023 (arXiv:2312.16886), §3.3, and 2024 (arXiv:2402.03766), §3.2.

    Args:
        version: 1 has two depthwise-separable blocks, 2 average pooling and a positional
            convolution.
        stride: divides the sides of a segment's token grid; 2 reduces 576 tokens to 144.
    """

    kind: Literal["ldp"] = "ldp"
    version: Literal[1, 2] = 1
    stride: int = 2

    reads_text: ClassVar[bool] = False

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives.

        Raises:
            SpecError: a segment's tokens form no square grid that the stride divides.
        """
        return shape.segments * divided_side(shape.tokens, self.stride, self.kind) ** 2

    def tiny(self) -> Ldp:
        """Return itself: its widths are those of encoder and backbone."""
        return self


@dataclass(frozen=True, kw_only=True)
class PerceiverResampler:
    """Latents with cross-attention to all frames of a medium (Flamingo).

    Alayrac et al. 2022 (arXiv:2204.14198), §3.1 and appendices A.1.1 and B.1. Linear layers map
    from the encoder's width and to the output width where these differ from the resampler's.

    Args:
        latents: number of learned queries, and hence of output tokens.
        width, layers, heads: of the resampler; its feed-forward layers are four times as wide.
        head_width: the published total of 194M parameters (table 5) follows from 128.
        activation: squared ReLU in the paper, GELU in OpenFlamingo.
        max_frames: number of learned time embeddings; pictures use the first.
    """

    kind: Literal["perceiver_resampler"] = "perceiver_resampler"
    latents: int = 64
    width: int = 1536
    layers: int = 6
    heads: int = 16
    head_width: int = 128
    activation: Literal["squared_relu", "gelu"] = "squared_relu"
    max_frames: int = 8

    reads_text: ClassVar[bool] = False

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: the latents, whatever its length.

        Raises:
            SpecError: more frames than time embeddings.
        """
        check_segments(shape.segments, self.max_frames, self.kind)
        return self.latents

    def tiny(self) -> PerceiverResampler:
        """Return the same architecture with small sizes."""
        return replace(self, latents=4, width=32, layers=2, heads=2, head_width=16)


@dataclass(frozen=True, kw_only=True)
class QwenResampler:
    """A square grid of queries, one cross-attention layer with 2-D positions (Qwen-VL).

    Bai et al. 2023 (arXiv:2308.12966), §2.1. It is as wide as the backbone.

    Args:
        queries: a square number of learned queries, and hence of output tokens per segment.
        head_width: the backbone's width divided by it is the number of heads.
    """

    kind: Literal["qwen_resampler"] = "qwen_resampler"
    queries: int = 256
    head_width: int = 128

    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError where the queries form no square grid."""
        square_side(self.queries, self.kind)

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: the queries, for each segment.

        Raises:
            SpecError: the tokens of a segment form no square grid.
        """
        square_side(shape.tokens, self.kind)
        return shape.segments * self.queries

    def tiny(self) -> QwenResampler:
        """Return the same architecture with small sizes."""
        return replace(self, queries=4, head_width=16)


@dataclass(frozen=True, kw_only=True)
class Abstractor:
    """Queries that attend to features and themselves, and a learned end token (mPLUG-Owl).

    Ye et al. 2023 (arXiv:2304.14178), §3.1; sizes of the published weights. It is as wide as the
    encoder.

    Args:
        queries: learned queries; their outputs and the end token are a segment's tokens.
        mlp_width: of the SwiGLU layers.
        dropout: of the attention, in training.
        temporal: whether the queries attend to all segments of a medium at once. With several
            segments, as many temporal queries are added, whose outputs are added to the others'
            through a linear layer of their own (mPLUG-Owl's video release).
    """

    kind: Literal["abstractor"] = "abstractor"
    queries: int = 64
    mlp_width: int = 2816
    layers: int = 6
    heads: int = 16
    dropout: float = 0.1
    temporal: bool = False

    reads_text: ClassVar[bool] = False

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: queries and end, per segment or once."""
        return (self.queries + 1) * (1 if self.temporal else shape.segments)

    def tiny(self) -> Abstractor:
        """Return the same architecture with small sizes."""
        return replace(self, queries=4, mlp_width=64, layers=2, heads=2)


def square_side(tokens: int, kind: str) -> int:
    """Return the side of a square grid of tokens.

    Raises:
        SpecError: they form none; most likely the encoder returns its class token.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise SpecError(
            f"projector {kind!r}: {tokens} tokens form no square grid; the encoder must not return "
            "its class token"
        )
    return side


def divided_side(tokens: int, factor: int, kind: str) -> int:
    """Return the side of a square grid of tokens, divided by a factor.

    Raises:
        SpecError: they form no such grid.
    """
    side = square_side(tokens, kind)
    if side % factor:
        raise SpecError(
            f"projector {kind!r}: a grid side of {side} tokens must be a multiple of {factor}"
        )
    return side // factor


def check_segments(segments: int, limit: int, kind: str) -> None:
    """Raise SpecError where a medium has more segments than there are position embeddings."""
    if segments > limit:
        raise SpecError(f"projector {kind!r}: {segments} segments, but at most {limit} positions")
