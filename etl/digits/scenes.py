"""Scenes of the digits world: one to three handwritten scans in colours and positions.

The handwriting is real: the 1,797 scans of 8×8 pixels that scikit-learn ships (the UCI optical
digits). It is split by scan, so that generalisation means new handwriting.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

CANVAS = 96
"""Width and height of an image, in pixels."""

GRID = 3
"""Cells per side; a scan is inside one cell, so its position has a name."""

CELL = CANVAS // GRID

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 50, 40),
    "green": (50, 190, 60),
    "blue": (60, 110, 250),
    "yellow": (240, 220, 50),
    "purple": (190, 70, 220),
    "white": (245, 245, 245),
}

POSITIONS = (
    "northwest",
    "north",
    "northeast",
    "west",
    "centre",
    "east",
    "southwest",
    "south",
    "southeast",
)
"""Names of the cells, row by row; one word each, so that a position is one token."""

_HELD_OUT_SHARE = 0.2
_SPLIT_SEED = 20240124


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One scan in a scene: its digit, its colour, its cell and the scan itself."""

    digit: int
    colour: str
    position: str
    scan: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Marks in reading order, and the seed of all other randomness in the image."""

    marks: tuple[Mark, ...]
    seed: int


@functools.cache
def scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scans (1797, 8, 8) with values in [0, 1], and their digits (1797,)."""
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


@functools.cache
def split(name: str) -> NDArray[np.int64]:
    """Indices of the scans of `train` or `held_out`; every scan is in exactly one of them.

    `validation` and `test` are the halves of `held_out`: one to choose settings by, one to report.
    """
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(scans()[1]))
    held_out = round(len(order) * _HELD_OUT_SHARE)
    parts = {"held_out": np.sort(order[:held_out]), "train": np.sort(order[held_out:])}
    parts |= {"validation": parts["held_out"][::2], "test": parts["held_out"][1::2]}
    if name not in parts:
        raise ValueError(f"split {name!r}, want one of {sorted(parts)}")
    return parts[name]


def random_scan(rng: np.random.Generator, split_name: str, digit: int) -> int:
    """A random scan of a digit from a split."""
    pool = split(split_name)
    return int(rng.choice(pool[scans()[1][pool] == digit]))


def random_scene(rng: np.random.Generator, split_name: str, most: int = 3) -> Scene:
    """A random scene: 1 to `most` (≤ 6) marks with distinct digits, colours and positions."""
    number = int(rng.integers(1, most + 1))
    digits = rng.choice(10, size=number, replace=False)
    colours = rng.choice(list(COLOURS), size=number, replace=False)
    cells = np.sort(rng.choice(len(POSITIONS), size=number, replace=False))
    marks = tuple(
        Mark(
            digit=int(digit),
            colour=str(colour),
            position=POSITIONS[cell],
            scan=random_scan(rng, split_name, int(digit)),
        )
        for digit, colour, cell in zip(digits, colours, cells, strict=True)
    )
    return Scene(marks=marks, seed=int(rng.integers(2**32)))


def render(scene: Scene) -> Image.Image:
    """Render a scene as an RGB image of CANVAS × CANVAS pixels on a dim, noisy background."""
    rng = np.random.default_rng(scene.seed)
    canvas = render_background(rng, rng.uniform(5, 45))
    for mark in scene.marks:
        _paste(canvas, mark, rng)
    return Image.fromarray(canvas.astype(np.uint8))


def render_background(
    rng: np.random.Generator, level: float, side: int = CANVAS
) -> NDArray[np.float32]:
    """Render a noisy background (side, side, 3); `level` is its brightness, of 255."""
    canvas = rng.standard_normal((side, side, 3), dtype=np.float32) * 4 + np.float32(level)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas


def _paste(canvas: NDArray[np.float32], mark: Mark, rng: np.random.Generator) -> None:
    """Blend a scan into its cell, slightly scaled, shifted and rotated."""
    ink_hw1 = render_ink(mark.scan, rng)
    size = len(ink_hw1)
    cell = POSITIONS.index(mark.position)
    top = cell // GRID * CELL + int(rng.integers(0, CELL - size + 1))
    left = cell % GRID * CELL + int(rng.integers(0, CELL - size + 1))
    blend(canvas[top : top + size, left : left + size], ink_hw1, random_colour(mark.colour, rng))


def render_ink(scan: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Render a scan's ink (h, h, 1) in [0, 1]: h from 24 to 30 pixels, rotated by up to 8°."""
    size = int(rng.integers(24, 31))
    image = Image.fromarray((scans()[0][scan] * 255).astype(np.uint8))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)[..., None] / np.float32(255)


def random_colour(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random shade of a named colour: red, green and blue up to 255, slightly darkened."""
    return np.array(COLOURS[name], dtype=np.float32) * np.float32(rng.uniform(0.85, 1.0))


def blend(
    patch: NDArray[np.float32], ink_hw1: NDArray[np.float32], colour: NDArray[np.float32]
) -> None:
    """Blend coloured ink into a region (h, h, 3) of an image, in place."""
    patch[:] = patch * (1 - ink_hw1) + colour * ink_hw1


def encode(image: Image.Image, mime: str) -> bytes:
    """Encode an image as `image/jpeg` (quality 92, full chroma) or `image/png`."""
    stream = io.BytesIO()
    if mime == "image/jpeg":
        image.save(stream, "JPEG", quality=92, subsampling=0)
    else:
        # Noise hardly compresses at any level; the lowest is twice as fast as the default.
        image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
