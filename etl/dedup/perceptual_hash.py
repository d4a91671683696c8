"""A perceptual hash of images, for finding near duplicates.

The pHash of Zauner's thesis (*Implementation and Benchmarking of Perceptual Image Hash Functions*,
2010) in the variant of the ImageHash library, which COYO's `image_phash` column holds, too: the
sign of the 8×8 lowest frequencies of a 32×32 grey picture's cosine transform, against their median.
Pictures that differ in size, compression or brightness are within a few bits of each other.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE = 8
_GREY = 32


def perceptual_hash(picture: Image.Image) -> int:
    """The hash of a decoded picture: 64 bits, the lowest frequency first (most significant)."""
    grey = picture if picture.mode == "L" else picture.convert("L")
    # The gap lets Pillow average first, by whole factors, before the better and slower filter.
    small = grey.resize((_GREY, _GREY), Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.frombuffer(small.tobytes(), np.uint8).reshape(_GREY, _GREY).astype(np.float32)
    basis = _cosines()
    low = (basis @ pixels @ basis.T).ravel()
    ranked = np.sort(low)  # numpy's own median takes longer than all the rest
    bits = low > (ranked[BITS // 2 - 1] + ranked[BITS // 2]) / 2
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hex_hash(value: int) -> str:
    """16 hex digits, as COYO and ImageHash write it."""
    return f"{value:016x}"


@functools.cache
def _cosines() -> NDArray[np.float32]:
    """The first rows of the unnormalised DCT-II."""
    order = np.arange(_SIDE)[:, None]
    place = np.arange(_GREY)[None, :]
    return (2 * np.cos(np.pi * order * (2 * place + 1) / (2 * _GREY))).astype(np.float32)
