"""Pictures to pixels, as every picture encoder takes them.

Pixels stay bytes until the encoder has them on its own device: a quarter of what floats would take
from worker to rank to device, and nothing to compute on the way.

Shapes: hw height and width in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.spec.image import Colour, Fit


def square(picture: Image.Image, side: int, *, fit: Fit, mean: Colour) -> Image.Image:
    """Return the picture at side × side pixels, resized bicubically.

    Args:
        picture: an RGB picture of any size.
        side: in pixels.
        fit: `squash` loses the aspect ratio, `pad` puts the picture amid the mean colour.
        mean: of red, green and blue in [0, 1].
    """
    if fit == "pad" and picture.width != picture.height:
        picture = _padded(picture, side, mean)
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _padded(picture: Image.Image, side: int, mean: Colour) -> Image.Image:
    """Return the picture amid the mean colour, a square; one that is wide is resized across."""
    longer = width = max(picture.size)
    if picture.width == longer:
        # Pillow resizes each row by itself, and then each column: no need to pad before the rows.
        width = side
        picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    # Rounded down, both the colour and the place, as LLaVA was trained.
    padded = Image.new("RGB", (width, longer), tuple(int(255 * value) for value in mean))
    padded.paste(picture, ((width - picture.width) // 2, (longer - picture.height) // 2))
    return padded


def pixels_of(picture: Image.Image) -> Tensor:
    """Return the pixels (3, h, w), uint8, of an RGB picture."""
    pixels_3hw = np.stack([np.asarray(channel) for channel in picture.split()])
    return torch.from_numpy(pixels_3hw)


def square_pixels(picture: Image.Image, side: int, *, fit: Fit, mean: Colour) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture: one part; see `square`."""
    return pixels_of(square(picture, side, fit=fit, mean=mean))[None]


def normalised(pixels: Tensor, *, mean: Colour, std: Colour) -> Tensor:
    """Return normalised pixels (…, 3, h, w), float32; floats are normalised already, and stay.

    Args:
        pixels: (…, 3, h, w), uint8 as they come from `pixels_of`.
        mean: of red, green and blue in [0, 1].
        std: the same.
    """
    if pixels.is_floating_point():
        return pixels
    values = pixels.to(torch.float32).div_(255)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        values[..., channel, :, :].sub_(middle).div_(spread)
    return values
