"""The vertices of PLY files, text and binary (Turk 1994, *The PLY Polygon File Format*)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_COORDINATES = ("x", "y", "z")
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


@dataclass(kw_only=True)
class _Element:
    """An element of the header: its name, its number of rows, its columns with NumPy's types."""

    name: str
    count: int
    columns: list[tuple[str, str]] = field(default_factory=list)
    lists: bool = False


def read_ply(data: bytes) -> NDArray[np.float64]:
    """Return the vertices (p, 3), or (p, 6) with colours in [0, 1].

    Raises:
        OSError: truncated or damaged.
        ValueError: an unsupported layout: vertices with list properties, or, in a binary file, such
            elements before them.
    """
    head, end, body = data.partition(b"end_header")
    body = body[2:] if body.startswith(b"\r\n") else body[1:]
    try:
        order, elements = _header(head.decode("ascii", errors="replace"))
    except (KeyError, IndexError, ValueError):
        raise OSError("a PLY file whose header is damaged") from None
    element_names = [element.name for element in elements]
    if not end or "vertex" not in element_names:
        raise OSError("a PLY file whose header is damaged or has no vertices")
    before = elements[: element_names.index("vertex")]
    vertex = elements[element_names.index("vertex")]
    if vertex.lists or (order and any(element.lists for element in before)):
        raise ValueError("a PLY file with list properties in its vertices or before them")
    names = _vertex_columns([name for name, _ in vertex.columns])
    if order:
        rows = _binary(body, order, before, vertex)
        columns = [rows[name].astype(np.float64) for name in names]
    else:
        table = _text(body, before, vertex)
        columns = [table[:, [n for n, _ in vertex.columns].index(name)] for name in names]
    types = dict(vertex.columns)
    scaled = [
        column / 255 if name not in _COORDINATES and types[name] == "u1" else column
        for name, column in zip(names, columns, strict=True)
    ]
    return np.stack(scaled, axis=1)


def _header(text: str) -> tuple[str, list[_Element]]:
    order: str | None = None
    elements: list[_Element] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if words[:1] == ["format"]:
            order = _ORDERS[words[1]]
        elif words[:1] == ["element"]:
            elements.append(_Element(name=words[1], count=_count(words[2])))
        elif words[:2] == ["property", "list"]:
            elements[-1].lists = True
        elif words[:1] == ["property"]:
            elements[-1].columns.append((words[2], _TYPES[words[1]]))
    if order is None:
        raise ValueError("no format")
    return order, elements


def _count(word: str) -> int:
    if not word.isdigit():
        raise ValueError(f"{word!r} rows")
    return int(word)


def _vertex_columns(names: Sequence[str]) -> tuple[str, ...]:
    if not set(_COORDINATES) <= set(names):
        raise OSError("a PLY file whose vertices have no x, y and z")
    colours = (triple for triple in _COLOURS if set(triple) <= set(names))
    return (*_COORDINATES, *next(colours, ()))


def _binary(
    body: bytes, order: str, before: Sequence[_Element], vertex: _Element
) -> NDArray[np.void]:
    skipped = sum(_row(element, order).itemsize * element.count for element in before)
    row = _row(vertex, order)
    if len(body) < skipped + row.itemsize * vertex.count:
        raise OSError(f"truncated: {len(body)} bytes for {vertex.count} vertices")
    return np.frombuffer(body, row, count=vertex.count, offset=skipped)


def _row(element: _Element, order: str) -> np.dtype[np.void]:
    return np.dtype([(name, order + kind) for name, kind in element.columns])


def _text(body: bytes, before: Sequence[_Element], vertex: _Element) -> NDArray[np.float64]:
    skipped = sum(element.count for element in before)
    lines = [words for line in body.splitlines() if (words := line.split())]
    rows = lines[skipped : skipped + vertex.count]
    if len(rows) < vertex.count:
        raise OSError(f"truncated: {len(rows)} of {vertex.count} vertices")
    try:
        return np.array(rows, dtype=np.float64).reshape(vertex.count, len(vertex.columns))
    except ValueError:
        raise OSError("a vertex that does not match the header") from None
