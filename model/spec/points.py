"""Specs of encoders of point clouds (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class PointBert:
    """PointBERT (Yu et al. 2021, arXiv:2111.14819) as ULIP trains it (Xue et al. 2023).

    Defaults: ULIP-2's PointBERT in X-InstructBLIP, 8192 points without colour. ULIP-2's version
    with colour has `points=10_000, channels=6, layers=18, embedding_width=1280`.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` of a ULIP checkpoint.
        points, channels: of a cloud; 3 channels are xyz, 6 are xyz and rgb.
        groups, group_size: number of local patches, and points in each.
        patch_width: output width of the mini-PointNet that encodes one patch.
        embedding_width: of the space that ULIP shares with texts and pictures.
        output: `embedding` returns one projected token (X-InstructBLIP); `pooled` one token, the
            class token concatenated with the maximum over the patches; `tokens` all tokens.
    """

    kind: Literal["point_bert"] = "point_bert"
    weights: str
    hidden_width: int = 384
    mlp_width: int = 1536
    layers: int = 12
    heads: int = 6
    points: int = 8192
    channels: Literal[3, 6] = 3
    groups: int = 512
    group_size: int = 32
    patch_width: int = 256
    embedding_width: int = 512
    output: Literal["embedding", "pooled", "tokens"] = "embedding"

    media: ClassVar[tuple[str, ...]] = ("points",)
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one cloud."""
        return (self.points, self.channels)

    @property
    def tokens(self) -> int:
        """Tokens per cloud that the projector receives."""
        return 1 + self.groups if self.output == "tokens" else 1

    @property
    def width(self) -> int:
        """Width of a token that the projector receives."""
        pooled = {"embedding": self.embedding_width, "pooled": 2 * self.hidden_width}
        return pooled.get(self.output, self.hidden_width)

    def tiny(self) -> PointBert:
        """Return the same tower with small sizes."""
        return replace(
            self,
            hidden_width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            points=128,
            groups=16,
            group_size=8,
            patch_width=32,
            embedding_width=32,
        )
