"""Probing point clouds: `.npy` arrays, and the vertices of PLY, OFF and OBJ meshes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from etl.media.container import DropError, require

_OFF = re.compile(rb"\s*C?OFF\b|\s*OFF(?=\d)")  # some of ModelNet's lack the line break
_OBJ = re.compile(rb"^v\s", re.MULTILINE)
_NUMBERS = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
"""PLY's names of number types (Turk 1994, *The PLY Polygon File Format*) → NumPy's."""


@dataclass(frozen=True, kw_only=True)
class PointsLimits:
    """Which clouds are kept, in points."""

    min_points: int = 64
    max_points: int = 1 << 24


@dataclass(frozen=True, kw_only=True)
class PointsInfo:
    """Properties of a cloud."""

    mime: str
    points: int


def probe(data: bytes, limits: PointsLimits) -> PointsInfo | str:
    """Read all coordinates; returns the cloud's properties, or the reason for dropping it."""
    try:
        require(bool(data), "empty_body")
        mime, xyz = _read(data)
        require(len(xyz) >= limits.min_points, "too_few_points")
        require(len(xyz) <= limits.max_points, "too_many_points")
        require(bool(np.isfinite(xyz).all()), "non_finite")
        require(bool(np.ptp(xyz, axis=0).any()), "all_points_equal")
    except DropError as drop:
        return str(drop)
    return PointsInfo(mime=mime, points=len(xyz))


def _read(data: bytes) -> tuple[str, NDArray[np.float64]]:
    """MIME type and coordinates (p, 3)."""
    if data.startswith(npy.MAGIC_PREFIX):
        return "application/x-npy", _npy(data)
    if data.startswith((b"ply\n", b"ply\r")):
        return "model/ply", _ply(data)
    if keyword := _OFF.match(data):
        return "model/off", _off(data[keyword.end() :])
    if b"\0" not in data and _OBJ.search(data):
        rows = [line.split()[1:4] for line in data.splitlines() if _OBJ.match(line)]
        return "model/obj", _numbers(rows)
    raise DropError("wrong_type")


def _npy(data: bytes) -> NDArray[np.float64]:
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except (ValueError, SyntaxError, TypeError, TokenError):
        raise DropError("corrupt") from None
    if len(shape) != 2 or shape[1] < 3 or dtype.kind not in "fiu":
        raise DropError("wrong_shape")
    # NumPy would allocate whatever the header says, and unpickle objects.
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise DropError("truncated")
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False)[:, :3].astype(np.float64)


def _ply(data: bytes) -> NDArray[np.float64]:
    head, end, body = data.partition(b"end_header")
    body = body[2:] if body.startswith(b"\r\n") else body[1:]
    if not end:
        raise DropError("truncated")
    try:
        order, elements = _ply_header(head.decode("ascii", errors="replace"))
    except (KeyError, IndexError, ValueError):
        raise DropError("corrupt") from None
    names = [name for name, _, _ in elements]
    if "vertex" not in names:
        raise DropError("wrong_shape")
    before = elements[: names.index("vertex")]
    _, count, columns = elements[names.index("vertex")]
    fields = [name for name, _ in columns]
    lists = any(kind == "list" for _, _, parts in before for _, kind in parts)
    if not {"x", "y", "z"} <= set(fields) or (order and lists):
        raise DropError("wrong_shape")
    if not order:
        skipped = sum(rows for _, rows, _ in before)
        lines = [words for line in body.splitlines() if (words := line.split())]
        table = _numbers(lines[skipped : skipped + count], len(columns), count)
        return table[:, [fields.index(axis) for axis in "xyz"]]
    row = np.dtype([(name, order + kind) for name, kind in columns])
    skip = sum(
        rows * np.dtype([(name, order + kind) for name, kind in parts]).itemsize
        for _, rows, parts in before
    )
    if len(body) < skip + row.itemsize * count:
        raise DropError("truncated")
    found = np.frombuffer(body, row, count=count, offset=skip)
    return np.stack([found[axis].astype(np.float64) for axis in "xyz"], axis=1)


_Element = tuple[str, int, list[tuple[str, str]]]


def _ply_header(text: str) -> tuple[str, list[_Element]]:
    """Byte order ("" for text), and the name, row count and columns of each element."""
    orders = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
    order = None
    elements: list[_Element] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if words[:1] == ["format"]:
            order = orders[words[1]]
        elif words[:1] == ["element"]:
            if not words[2].isdigit():
                raise ValueError(words[2])
            elements.append((words[1], int(words[2]), []))
        elif words[:2] == ["property", "list"]:
            elements[-1][2].append((words[4], "list"))
        elif words[:1] == ["property"]:
            elements[-1][2].append((words[2], _NUMBERS[words[1]]))
    if order is None:
        raise ValueError("no format")
    return order, elements


def _off(body: bytes) -> NDArray[np.float64]:
    lines = [words for part in body.splitlines() if (words := part.partition(b"#")[0].split())]
    if not lines or not lines[0][0].isdigit():
        raise DropError("corrupt")
    count = int(lines[0][0])
    return _numbers([line[:3] for line in lines[1 : count + 1]], 3, count)


def _numbers(
    rows: Sequence[Sequence[bytes]], columns: int = 3, count: int | None = None
) -> NDArray[np.float64]:
    if count is not None and len(rows) < count:
        raise DropError("truncated")
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), columns)
    except ValueError:
        raise DropError("corrupt") from None
