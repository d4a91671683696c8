"""Pictures that a model is asked to draw: one handwritten scan that fills a small picture.

A close-up is like one cell of a scene, of its size and rendered in the same way, but centred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl.digits.scenes import (
    CELL,
    blend,
    random_colour,
    random_scan,
    render_background,
    render_ink,
)


@dataclass(frozen=True, kw_only=True)
class Closeup:
    """A scan, its digit and colour, and the seed of all other randomness."""

    digit: int
    colour: str
    scan: int
    seed: int


def random_closeup(
    rng: np.random.Generator, split_name: str, *, digit: int, colour: str
) -> Closeup:
    """A close-up of a random scan of `train` or `held_out`."""
    scan = random_scan(rng, split_name, digit)
    return Closeup(digit=digit, colour=colour, scan=scan, seed=int(rng.integers(2**32)))


def render(closeup: Closeup) -> NDArray[np.uint8]:
    """Render the pixels (CELL, CELL, 3) on a dim, noisy background."""
    rng = np.random.default_rng(closeup.seed)
    canvas = render_background(rng, rng.uniform(5, 45), side=CELL)
    ink_hw1 = render_ink(closeup.scan, rng)
    size = len(ink_hw1)
    start = (CELL - size) // 2
    patch = canvas[start : start + size, start : start + size]
    blend(patch, ink_hw1, random_colour(closeup.colour, rng))
    return canvas.astype(np.uint8)
