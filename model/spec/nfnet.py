"""Spec of Flamingo's encoder, a convolutional network without normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.image import Colour, Fit

STRIDE = 32
"""Pixels per token and side: 4 in the stem, 2 in each stage but the first."""


@dataclass(frozen=True, kw_only=True)
class NfNet:
    """NFNet-F6 (Brock et al. 2021, arXiv:2102.06171), its feature map before pooling.

    Flamingo (Alayrac et al. 2022, §3.1) flattens the feature map of a picture of 320 pixels to
    tokens. Its contrastively trained weights are not published; the default is ImageNet's.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` with timm's names.
        depths, widths: blocks and channels of each of the four stages.
        stem_width: output channels of the stem.
        group_width: channels of a group of the 3 x 3 convolutions.
        image_size: side of the square picture in pixels.
        fit: how a picture is made square: `pad` with the mean colour, or `squash`.
        mean, std: of the red, green and blue values in [0, 1].
    """

    kind: Literal["nfnet"] = "nfnet"
    weights: str = "timm/dm_nfnet_f6.dm_in1k:model.safetensors"
    depths: tuple[int, int, int, int] = (7, 14, 42, 21)
    widths: tuple[int, int, int, int] = (256, 512, 1536, 1536)
    stem_width: int = 128
    group_width: int = 128
    image_size: int = 320
    fit: Fit = "pad"
    mean: Colour = (0.485, 0.456, 0.406)
    std: Colour = (0.229, 0.224, 0.225)

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, self.image_size, self.image_size)

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
            image_size=2 * STRIDE,
        )
