"""3D objects of the digits world: a handwritten scan, extruded, as a cloud of coloured points."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from etl.digits.scenes import COLOURS, random_colour, random_scan, scans

POINTS = 1024
"""Points of a cloud."""

_SIDE = 32  # pixels to which a scan is enlarged for a smooth outline
_INK = 0.45  # ink above which a pixel belongs to the object
_DEPTH = 0.3  # of the object, where a scan is 2 wide and 2 high


@dataclass(frozen=True, kw_only=True)
class Solid:
    """One extruded scan: its digit, its colour, and the seed of all other randomness."""

    digit: int
    colour: str
    scan: int
    seed: int


def random_solid(rng: np.random.Generator, split_name: str) -> Solid:
    """A random object of a scan of `train` or `held_out`."""
    digit = int(rng.integers(10))
    return Solid(
        digit=digit,
        colour=str(rng.choice(list(COLOURS))),
        scan=random_scan(rng, split_name, digit),
        seed=int(rng.integers(2**32)),
    )


def render(solid: Solid) -> NDArray[np.float32]:
    """Return a cloud (POINTS, 6): x right, y up, z towards the viewer; then r, g, b in [0, 1].

    The points fill the inked part of the scan uniformly. The object is rotated about its vertical
    axis by up to 30 degrees and scaled by 0.5 to 2; colours vary slightly from point to point.
    """
    rng = np.random.default_rng(solid.seed)
    scan = Image.fromarray(scans()[0][solid.scan])
    outline = np.asarray(scan.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) > _INK
    inked = np.argwhere(outline)
    row, column = inked[rng.integers(len(inked), size=POINTS)].T
    across, down, z = rng.uniform(0, 1, (3, POINTS))
    x, y = 2 * (column + across) / _SIDE - 1, 1 - 2 * (row + down) / _SIDE
    z = _DEPTH * (z - 0.5)
    angle = np.radians(rng.uniform(-30, 30))
    rotated = (x * np.cos(angle) + z * np.sin(angle), y, z * np.cos(angle) - x * np.sin(angle))
    xyz_p3 = np.stack(rotated, axis=1) * rng.uniform(0.5, 2)
    rgb_p3 = random_colour(solid.colour, rng) / 255 + rng.normal(0, 0.03, (POINTS, 3))
    return np.concatenate([xyz_p3, np.clip(rgb_p3, 0, 1)], axis=1).astype(np.float32)


def encode(cloud: NDArray[np.float32]) -> bytes:
    """Encode a cloud as NumPy's `.npy`."""
    stream = io.BytesIO()
    np.save(stream, cloud, allow_pickle=False)
    return stream.getvalue()
