"""Spec of Flamingo's encoder, a convolutional network without normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.spec.image import PictureSpec
from model.spec.image_processor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageProcessor,
    pad_to_square,
)

STRIDE = 32
"""Pixels per token and side: 4 in the stem, 2 in each stage but the first."""


@dataclass(frozen=True, kw_only=True)
class NfNet(PictureSpec):
    """NFNet-F6 (Brock et al. 2021, arXiv:2102.06171), its feature map before pooling.

    Flamingo (Alayrac et al. 2022, §3.1) flattens the feature map of a picture of 320 pixels to
    tokens. Its contrastively trained weights are not published; the default is ImageNet's.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` with timm's names.
        depths, widths: blocks and channels of each of the four stages.
        stem_width: output channels of the stem.
        group_width: channels of a group of the 3 x 3 convolutions.
    """

    kind: Literal["nfnet"] = "nfnet"
    weights: str = "timm/dm_nfnet_f6.dm_in1k:model.safetensors"
    depths: tuple[int, int, int, int] = (7, 14, 42, 21)
    widths: tuple[int, int, int, int] = (256, 512, 1536, 1536)
    stem_width: int = 128
    group_width: int = 128
    processor: ImageProcessor = pad_to_square(320, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives: cells of the feature map."""
        side = -(-self.image_size // STRIDE)
        return side * side

    @property
    def width(self) -> int:
        """Channels of the last convolution: twice the last stage's."""
        return 2 * self.widths[-1]

    def tiny(self) -> NfNet:
        """Return the same network with small sizes."""
        return replace(
            self,
            depths=(1, 1, 2, 1),
            widths=(16, 16, 32, 32),
            stem_width=16,
            group_width=8,
            processor=self.processor.at(2 * STRIDE),
        )
