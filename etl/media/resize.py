"""Pictures made smaller: decoded small where JPEG's format gives it, filtered once, encoded anew.

By a factor of 2 or more the mean of pixels is taken; by less, which is what a JPEG's own decoding
leaves, a Gaussian of three pixels, as wide as the factor needs, and cubic interpolation. Against
Pillow's Lanczos filter this comes to 50, 46 and 44 dB for factors of 1.1, 1.46 and 1.9 (the mean
of twelve photographs), where Pillow's Hamming filter has 42, 45 and 44 and takes four times as
long (docs/etl.md). From the decoder to the encoder they are arrays: every Pillow image on the way
would be one more copy, and Pillow's own encoder, which writes the same bytes, takes a third longer.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MEAN_FROM = 2.0
_SIGMA = 0.4
"""Of the Gaussian, in pixels of the source; times sqrt(factor² - 1)."""

_LEAST_SIGMA = 0.28
"""Narrower, a neighbour weighs less than 1/512, which OpenCV's fixed point rounds to nothing."""


@functools.cache
def _cv2() -> ModuleType:
    """OpenCV, which workers only pay for; their threads are parallel enough."""
    import cv2  # noqa: PLC0415

    cv2.setNumThreads(1)
    return cv2


def decode_jpeg(data: bytes, picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A JPEG at no less than a size (width and height), through libjpeg-turbo alone if it can be.

    Args:
        data: its bytes.
        picture: the same, opened and in RGB or grey; what libjpeg-turbo finds fault with is left to
            it, which knows what is bad and what is merely odd.
        size: what it is to be shrunk to.
    """
    import simplejpeg  # noqa: PLC0415

    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if picture.mode == "L" else "RGB",
            min_width=size[0],
            min_height=size[1],
            min_factor=2,
        )
    except ValueError:
        picture.draft(None, size)
        return np.asarray(picture)
    return pixels[..., 0] if picture.mode == "L" else pixels


def shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture in RGB or grey at a smaller size (width and height)."""
    cv2 = _cv2()
    factor = min(pixels.shape[1] / size[0], pixels.shape[0] / size[1])
    if factor >= _MEAN_FROM:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    sigma = _SIGMA * math.sqrt(max(0.0, factor**2 - 1))
    if sigma > _LEAST_SIGMA:
        pixels = cv2.GaussianBlur(pixels, (3, 3), sigma)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A picture in RGB or grey as a JPEG, with colours at half the size as Pillow has them."""
    cv2 = _cv2()
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return data.tobytes()


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The brightness of a picture in RGB or grey."""
    cv2 = _cv2()
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
