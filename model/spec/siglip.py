"""Spec of SigLIP's vision transformer (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.spec.image import TINY_PATCH, PictureSpec
from model.spec.image_processor import HALF, ImageProcessor, squash


@dataclass(frozen=True, kw_only=True)
class Siglip(PictureSpec):
    """SigLIP's vision transformer (Zhai et al. 2023, arXiv:2303.15343), without its pooling head.

    Defaults: SoViT-400m/14 at 384 pixels. It has no class token.

    Args:
        weights: a hub name or a folder of a transformers SigLIP checkpoint, of which only the
            vision model is loaded.
        patch_size: side of a patch, in pixels; it and the processor's size are the weights'.
        norm_eps: of the layer norms.
    """

    kind: Literal["siglip"] = "siglip"
    weights: str = "google/siglip-so400m-patch14-384"
    width: int = 1152
    mlp_width: int = 4304
    layers: int = 27
    heads: int = 16
    processor: ImageProcessor = squash(384, mean=HALF, std=HALF)
    patch_size: int = 14
    norm_eps: float = 1e-6

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
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
        )
