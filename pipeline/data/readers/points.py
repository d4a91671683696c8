"""Point clouds: `.npy` arrays, and the vertices of PLY, OFF and OBJ meshes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.readers.ply import read_ply

MAX_POINTS = 1 << 24
"""Largest number of points of a cloud."""

GREY = 0.4
"""Red, green and blue of points without colour, as in the published code of OpenShape."""

_NOT_A_HEADER = (ValueError, SyntaxError, TypeError, TokenError)
"""NumPy's errors for a damaged header, which it parses as Python."""

_OFF = re.compile(rb"\s*C?OFF\b|\s*OFF(?=\d)")  # some of ModelNet's files lack the newline
_OBJ = re.compile(rb"^v\s", re.MULTILINE)


def read_points(data: bytes) -> NDArray[np.float32]:
    """Return a cloud (p, 6): x, y, z as in the file, and r, g, b in [0, 1].

    The format is detected from the bytes. Colours above 1 are taken as 8 bits, faces are ignored.
    Centring and scaling are left to the encoder.

    Raises:
        OSError: truncated, damaged, or of an unknown format.
        ValueError: no points, too many, or values that are not finite.
    """
    cloud = _decode(data)
    if not len(cloud):
        raise ValueError("a point cloud without points")
    if len(cloud) > MAX_POINTS:
        raise ValueError(f"{len(cloud)} points, at most {MAX_POINTS}")
    if not np.isfinite(cloud).all():
        raise ValueError("a point cloud with values that are not finite")
    coloured = np.full((len(cloud), 6), GREY, dtype=np.float32)
    coloured[:, :3] = cloud[:, :3]
    if cloud.shape[1] >= 6:
        colours = cloud[:, 3:6]
        coloured[:, 3:] = np.clip(colours / 255 if colours.max() > 1 else colours, 0, 1)
    return coloured


def _decode(data: bytes) -> NDArray[np.float64]:
    """Return points (p, 3 or 6 or more): x, y, z, and r, g, b if there are six columns or more."""
    if data.startswith(npy.MAGIC_PREFIX):
        return _npy(data)
    if data.startswith((b"ply\n", b"ply\r")):
        return read_ply(data)
    if keyword := _OFF.match(data):
        return _off(data[keyword.end() :])
    if b"\0" not in data and _OBJ.search(data):
        return _obj(data)
    raise OSError(f"{len(data)} bytes that are no points; want .npy, PLY, OFF or OBJ")


def _npy(data: bytes) -> NDArray[np.float64]:
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except _NOT_A_HEADER:
        raise OSError("an array whose header is damaged") from None
    if len(shape) != 2 or shape[1] < 3 or dtype.kind not in "fiu":
        raise ValueError(f"an array of {dtype} {shape}, want numbers (points, 3) or (points, 6)")
    # NumPy would allocate whatever size the header states.
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise OSError(f"truncated: {len(data)} bytes for an array of {dtype} {shape}")
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False).astype(np.float64)


def _off(body: bytes) -> NDArray[np.float64]:
    lines = [line for text in body.splitlines() if (line := text.partition(b"#")[0].split())]
    if not lines or not lines[0][0].isdigit():
        raise OSError("an OFF file that does not state its number of vertices")
    count = int(lines[0][0])
    rows = lines[1 : count + 1]
    if len(rows) < count:
        raise OSError(f"truncated: {len(rows)} of {count} vertices")
    return _table(rows)


def _obj(data: bytes) -> NDArray[np.float64]:
    return _table([line.split()[1:] for line in data.splitlines() if _OBJ.match(line)])


def _table(rows: Sequence[Sequence[bytes]]) -> NDArray[np.float64]:
    """Return numbers (rows, 3 or 6): the columns that all rows have."""
    columns = min((len(row) for row in rows), default=3)
    if columns < 3:
        raise OSError("a point of fewer than three numbers")
    columns = 6 if columns >= 6 else 3
    try:
        return np.array([row[:columns] for row in rows], dtype=np.float64).reshape(-1, columns)
    except ValueError:
        raise OSError("a point that is not made of numbers") from None
