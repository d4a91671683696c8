"""Pictures to pixels: the preprocessing that all picture encoders share.

Pixels stay bytes until the encoder normalises them on its device: they need a quarter of the memory
and transfer time of floats, and no computation in the workers.

Shapes: hw height and width in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.spec.image import Colour, Fit


def resize_to_square(picture: Image.Image, side: int, *, fit: Fit, mean: Colour) -> Image.Image:
    """Return the picture resized bicubically to side × side pixels.

    Args:
        picture: an RGB picture of any size.
        side: in pixels.
        fit: `squash` ignores the aspect ratio, `pad` centres the picture on the mean colour.
        mean: of red, green and blue in [0, 1].
    """
    if fit == "pad" and picture.width != picture.height:
        picture = _padded(picture, side, mean)
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _padded(picture: Image.Image, side: int, mean: Colour) -> Image.Image:
    """Return the picture padded to a square; a wide picture is already resized horizontally."""
    longer = width = max(picture.size)
    if picture.width == longer:
        # Pillow resizes rows first, then columns, so padding rows can wait until they are resized.
        width = side
        picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    # Colour and offset are rounded down, as in LLaVA's training.
    padded = Image.new("RGB", (width, longer), tuple(int(255 * value) for value in mean))
    padded.paste(picture, ((width - picture.width) // 2, (longer - picture.height) // 2))
    return padded


def to_pixels(picture: Image.Image) -> Tensor:
    """Return the pixels (3, h, w), uint8, of an RGB picture."""
    pixels_3hw = np.stack([np.asarray(channel) for channel in picture.split()])
    return torch.from_numpy(pixels_3hw)


def square_pixels(picture: Image.Image, side: int, *, fit: Fit, mean: Colour) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture; see `resize_to_square`."""
    return to_pixels(resize_to_square(picture, side, fit=fit, mean=mean))[None]


def normalise(pixels: Tensor, *, mean: Colour, std: Colour) -> Tensor:
    """Return normalised pixels (…, 3, h, w), float32; floats are already normalised and returned.

    Args:
        pixels: (…, 3, h, w), uint8 as returned by `to_pixels`.
        mean: of red, green and blue in [0, 1].
        std: likewise.
    """
    if pixels.is_floating_point():
        return pixels
    values = pixels.to(torch.float32).div_(255)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        values[..., channel, :, :].sub_(middle).div_(spread)
    return values
