"""A perceptual hash of images, for finding near duplicates.

The pHash of Zauner's thesis (*Implementation and Benchmarking of Perceptual Image Hash Functions*,
2010) in the variant of the ImageHash library and of COYO's `image_phash` column: the signs of the
8×8 lowest frequencies of the cosine transform of a 32×32 grey image, relative to their median.
Images that differ in size, compression or brightness are within a few bits of each other.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_FREQUENCIES = 8  # per axis
_SIDE = 32


def perceptual_hash(image: Image.Image) -> int:
    """The hash of a decoded image: 64 bits, the lowest frequency first (most significant)."""
    grey = image if image.mode == "L" else image.convert("L")
    # The gap lets Pillow first average by whole factors, before the better and slower filter.
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.frombuffer(small.tobytes(), np.uint8).reshape(_SIDE, _SIDE).astype(np.float32)
    basis = _cosines()
    low = (basis @ pixels @ basis.T).ravel()
    ranked = np.sort(low)  # numpy's own median takes longer than everything else
    bits = low > (ranked[BITS // 2 - 1] + ranked[BITS // 2]) / 2
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hex_hash(value: int) -> str:
    """16 hex digits, as COYO and ImageHash write it."""
    return f"{value:016x}"


@functools.cache
def _cosines() -> NDArray[np.float32]:
    """The first rows of the unnormalised DCT-II."""
    frequency = np.arange(_FREQUENCIES)[:, None]
    position = np.arange(_SIDE)[None, :]
    return (2 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE))).astype(np.float32)
