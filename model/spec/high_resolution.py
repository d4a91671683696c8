"""Specs of high-resolution picture encoders: tiles through one tower, or DCT coefficients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError
from model.spec.image import ClipVision

DCT_SIDE = 8
"""Side of a block of the discrete cosine transform (DCT), as in JPEG, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Monkey:
    """Monkey's tiles, which the paper calls windows (Li et al. 2023, arXiv:2311.06607, §3.1).

    A picture's rows x columns tiles and, last, the whole picture at a tile's size pass through one
    frozen tower; each tile, but not the whole picture, has low-rank adapters of its own.

    Args:
        tower: encoder of one tile.
        rows, columns: of tiles; 2 x 3 of 448 pixels are the paper's 896 x 1344.
        rank, mlp_rank: of the adapters of the attention's layers and of the MLP.
        dropout: before the adapters.
    """

    kind: Literal["monkey"] = "monkey"
    tower: ClipVision
    rows: int = 2
    columns: int = 3
    rank: int = 16
    mlp_rank: int = 32
    dropout: float = 0.05

    media: ClassVar[tuple[str, ...]] = ("image",)
    encodes_jointly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError where the tower pads or crops pictures, which would change the tiles."""
        if not self.tower.processor.squashes:
            raise SpecError("encoder 'monkey': tower.processor pads or crops, must only resize")

    @property
    def weights(self) -> str:
        """Source of the tower's weights."""
        return self.tower.weights

    @property
    def tiles(self) -> int:
        """Tiles of one picture, without the whole picture."""
        return self.rows * self.columns

    @property
    def segments(self) -> int:
        """The tiles and the whole picture."""
        return self.tiles + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one tile."""
        return self.tower.shape

    @property
    def tokens(self) -> int:
        """Tokens per tile that the projector receives."""
        return self.tower.tokens

    @property
    def width(self) -> int:
        """Width of the tower."""
        return self.tower.width

    def tiny(self) -> Monkey:
        """Return the same encoder with small sizes."""
        return replace(self, tower=self.tower.tiny(), rank=4, mlp_rank=4)


@dataclass(frozen=True, kw_only=True)
class DocPedia:
    """DocPedia's frequency-domain encoder (Feng et al. 2023, arXiv:2311.11810): DCT, then Swin-B.

    Each 8 x 8 block of a picture in luma and chroma is transformed to its 192 DCT coefficients; the
    frequency adapter projects them to the width of the Swin transformer's first stage, and its four
    stages go from 1/8 to 1/64 of the picture's sides.

    No code is published. A linear adapter and full-resolution chroma are our choices.

    Args:
        weights: a hub name or a folder of a transformers Swin checkpoint. From a checkpoint for
            pixels, everything but the adapter is loaded, which is new.
        embed_width: of the first stage; the width doubles with each stage.
        depths, heads: layers and attention heads of each stage.
        window: side of the attention windows, in blocks.
        image_size: side of the square picture in pixels.
    """

    kind: Literal["docpedia"] = "docpedia"
    weights: str = "microsoft/swin-base-patch4-window7-224-in22k"
    embed_width: int = 128
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    window: int = 7
    image_size: int = 2560

    media: ClassVar[tuple[str, ...]] = ("image",)
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coefficients of one picture: (3 x 8 x 8, rows, columns of blocks)."""
        return (3 * DCT_SIDE**2, self.image_size // DCT_SIDE, self.image_size // DCT_SIDE)

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives: three stages halve the sides."""
        return (self.image_size // DCT_SIDE // 8) ** 2

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return 8 * self.embed_width

    def tiny(self) -> DocPedia:
        """Return the same encoder with small sizes."""
        return replace(
            self,
            embed_width=8,
            depths=(1, 1, 2, 1),
            heads=(1, 2, 4, 8),
            window=2,
            image_size=16 * DCT_SIDE,
        )
