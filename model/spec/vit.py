"""Specs of vision transformers trained on labels: the original ViT and ViT-22B."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.image import TINY_PATCH, Colour, Fit

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation that map pixel values to [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Vit:
    """A vision transformer (Dosovitskiy et al. 2021) up to its last norm; ViT-L/16 by default.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        image_size, patch_size: side of the square picture and of a patch, in pixels. Position
            embeddings of weights for another size are interpolated.
        keep_cls: whether the class token is returned with the patches.
        fit: how a picture is made square: `squash`, or `pad` with the mean colour.
        mean, std: of the red, green and blue values in [0, 1].
    """

    kind: Literal["vit"] = "vit"
    weights: str = "google/vit-large-patch16-224-in21k"
    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 224
    patch_size: int = 16
    keep_cls: bool = False
    fit: Fit = "squash"
    mean: Colour = HALF
    std: Colour = HALF

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives."""
        return (self.image_size // self.patch_size) ** 2 + self.keep_cls

    def tiny(self) -> Vit:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            image_size=2 * TINY_PATCH,
            patch_size=TINY_PATCH,
        )


@dataclass(frozen=True, kw_only=True)
class Vit22B:
    """ViT-22B (Dehghani et al. 2023, arXiv:2302.05442, §2), PaLI-X's encoder, without pooling.

    Attention and MLP run in parallel on the same normed input; queries and keys are normalised.

    Args:
        weights: a safetensors file with our names, `FOLDER/FILE`; none are published.
        image_size, patch_size: side of the square picture and of a patch, in pixels.
        fit: how a picture is made square: `squash`, or `pad` with the mean colour.
        mean, std: of the red, green and blue values in [0, 1].
    """

    kind: Literal["vit_22b"] = "vit_22b"
    weights: str | None = None
    width: int = 6144
    mlp_width: int = 24576
    layers: int = 48
    heads: int = 48
    image_size: int = 224
    patch_size: int = 14
    fit: Fit = "squash"
    mean: Colour = HALF
    std: Colour = HALF

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives; there is no class token."""
        return (self.image_size // self.patch_size) ** 2

    def tiny(self) -> Vit22B:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            image_size=2 * TINY_PATCH,
            patch_size=TINY_PATCH,
        )
