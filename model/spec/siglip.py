"""Spec of SigLIP's vision transformer (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.image import TINY_PATCH, Colour, Fit
from model.spec.vit import HALF


@dataclass(frozen=True, kw_only=True)
class Siglip:
    """SigLIP's vision transformer (Zhai et al. 2023, arXiv:2303.15343), without its pooling head.

    Defaults: SoViT-400m/14 at 384 pixels. It has no class token.

    Args:
        weights: a hub name or a folder of a transformers SigLIP checkpoint, of which only the
            vision model is loaded.
        image_size, patch_size: side of the square picture and of a patch, in pixels; those of the
            weights.
        norm_eps: of the layer norms.
        fit: how a picture is made square: `squash`, or `pad` with the mean colour.
        mean, std: of the red, green and blue values in [0, 1].
    """

    kind: Literal["siglip"] = "siglip"
    weights: str = "google/siglip-so400m-patch14-384"
    width: int = 1152
    mlp_width: int = 4304
    layers: int = 27
    heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    norm_eps: float = 1e-6
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
        return (self.image_size // self.patch_size) ** 2

    def tiny(self) -> Siglip:
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
