"""Specs of vision transformers trained on labels: the original ViT and ViT-22B."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.spec.image import TINY_PATCH, PictureSpec
from model.spec.image_processor import HALF, ImageProcessor, squash


@dataclass(frozen=True, kw_only=True)
class Vit(PictureSpec):
    """A vision transformer (Dosovitskiy et al. 2021) up to its last norm; ViT-L/16 by default.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        patch_size: side of a patch, in pixels. Position embeddings of weights for another size
            than the processor's are interpolated.
        keep_cls: whether the class token is returned with the patches.
    """

    kind: Literal["vit"] = "vit"
    weights: str = "google/vit-large-patch16-224-in21k"
    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16
    processor: ImageProcessor = squash(224, mean=HALF, std=HALF)
    patch_size: int = 16
    keep_cls: bool = False

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
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
        )


@dataclass(frozen=True, kw_only=True)
class Vit22B(PictureSpec):
    """ViT-22B (Dehghani et al. 2023, arXiv:2302.05442, §2), PaLI-X's encoder, without pooling.

    Attention and MLP run in parallel on the same normed input; queries and keys are normalised.

    Args:
        weights: a safetensors file with our names, `FOLDER/FILE`; none are published.
        patch_size: side of a patch, in pixels.
    """

    kind: Literal["vit_22b"] = "vit_22b"
    weights: str | None = None
    width: int = 6144
    mlp_width: int = 24576
    layers: int = 48
    heads: int = 48
    processor: ImageProcessor = squash(224, mean=HALF, std=HALF)
    patch_size: int = 14

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
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
        )
