"""Corrupted images, whose answers mDPO rejects (Wang et al. 2024, arXiv:2406.11839)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_KEPT = (0.0, 0.2)
"""Share of an image's area that its corrupted form shows (§3.1)."""


def corrupt(image: object, rng: np.random.Generator) -> Image.Image:
    """Return a random part of an image, a fifth of its area at most, in the image's proportions.

    Raises:
        ValueError: it is not one image.
    """
    if not isinstance(image, Image.Image):
        raise ValueError("only images have a corrupted form")
    side = math.sqrt(rng.uniform(*_KEPT))
    width, height = (max(1, round(size * side)) for size in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
