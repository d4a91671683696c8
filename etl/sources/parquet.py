"""Lists of image-text pairs in parquet: LAION and derivatives, COYO-700M, DataComp.

Every list has its own column names, and mirrors differ in case and in int or float, so columns are
found by any of their names and numbers are cast.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.cli import UserError
from etl.media.embedded import TableFile
from etl.media.faces import BOXES
from etl.sources.base import content_id
from etl.sources.files import DAMAGE, input_files

SCORES: Mapping[str, tuple[str, ...]] = {
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score"),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "watermark_score"),
    "similarity_l14": ("clip_similarity_vitl14", "clip_l14_similarity_score"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2", "prediction"),
    "gantman": ("nsfw_score_gantman",),
    "faces": ("num_faces",),
    "nsfw": ("nsfw",),
}
"""Score → its column in LAION, COYO or DataComp, in lower case.

`nsfw` is LAION's tag as a number, see `_TAGS`. COYO's `num_faces` is a count.
"""

LAION_SCORES = ("similarity", "punsafe", "pwatermark")
"""The scores that tables always have, null if unpublished."""

_SIZES = {
    "declared_width": ("width", "original_width"),
    "declared_height": ("height", "original_height"),
}
_CAPTIONS = ("top_caption", "text", "caption")  # LAION-COCO's generated caption comes first
_LINEAGE = ("uid", "id", "sample_id", "language", "license", "sha256", "image_phash", "hash")
"""Columns that go into lineage."""

_TAGS = {"UNLIKELY": 0.0, "UNSURE": 0.5, "NSFW": 1.0}


class Laion:
    """Parquet or Arrow with URL and TEXT and, where published, sizes and scores.

    Width, height and scores may be missing; `missing` names those of LAION's that are, `scores` all
    that at least one file has. A list of captions gives a row each.

    Args:
        path: a file, or a folder of files.
        boxes: a column of face boxes (see `etl.media.faces`), which becomes `boxes`.
        columns: the columns of `url` and `caption`, where they have other names.

    Raises:
        UserError: a file is missing, empty, not parquet, or lacks URL, TEXT or that column.
    """

    def __init__(
        self, path: Path, *, boxes: str | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        self.files = input_files(path, ".parquet")
        self._found = [_published(file, boxes, columns or {}) for file in self.files]
        optional = {
            **{"WIDTH": "declared_width", "HEIGHT": "declared_height"},
            **{name: f"score.{name}" for name in LAION_SCORES},
        }
        self.missing = [
            name for name, ours in optional.items() if any(ours not in one for one in self._found)
        ]
        self.scores = [name for name in SCORES if any(f"score.{name}" in f for f in self._found)]
        always = (*_SIZES, *(f"score.{name}" for name in LAION_SCORES))
        self._numbers = [
            name
            for name in (*_SIZES, *(f"score.{name}" for name in SCORES))
            if name in always or any(name in one for one in self._found)
        ]
        try:
            if all(TableFile(file).is_empty for file in self.files):
                raise UserError(f"--input {path}: the list has no rows")
        except DAMAGE as error:
            raise UserError(f"--input {path}: damaged parquet ({error})") from None

    def read(self, rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        for start, table in _regroup(self._tables(rows), rows):
            yield _candidates(start, table)

    def _tables(self, rows: int) -> Iterator[pa.Table]:
        for file, names in zip(self.files, self._found, strict=True):
            try:
                columns = list(dict.fromkeys(names.values()))
                for _, batch in TableFile(file).batches(columns, rows=rows):
                    yield self._columns(file, pa.table(batch), names)
            except DAMAGE as error:
                raise UserError(f"{file}: damaged parquet ({error})") from None

    def _columns(self, file: Path, table: pa.Table, names: Mapping[str, str]) -> pa.Table:
        """Rename and cast to one shape; absent columns become nulls."""
        captions, parents = caption_strings(file, names["caption"], table[names["caption"]])
        if parents is not None:
            table = table.take(parents)
        bad: dict[int, str] = {}
        columns = {
            "url": _strings(file, names["url"], table[names["url"]], bad),
            "caption": _strings(file, names["caption"], captions, bad),
            "lineage": _lineage(table, names),
        }
        if "boxes" in names:
            columns["boxes"] = _boxes(file, names["boxes"], table[names["boxes"]])
        for name in self._numbers:
            if name in names:
                columns[name] = _numbers(file, names[name], table[names[name]])
            else:
                columns[name] = pa.nulls(table.num_rows, pa.float32())
        errors = [bad.get(row) for row in range(table.num_rows)] if bad else None
        columns["parse_error"] = pa.array(errors or [None] * table.num_rows, pa.string())
        return pa.table(columns)


def _published(file: Path, boxes: str | None, columns: Mapping[str, str]) -> dict[str, str]:
    """Our column name → the file's, for all columns that the file has.

    Raises:
        UserError: the file is damaged, or lacks a column that it must have.
    """
    schema = TableFile(file).schema.names
    found = {name.lower(): name for name in schema}
    needed = {"url": "URL", "caption": "TEXT"}
    required = [columns.get(ours, name) for ours, name in needed.items()]
    if "caption" not in columns and not _any(_CAPTIONS, found):
        require_columns(file, found, required)
    require_columns(file, found, [*required[:1], *columns.values(), *([boxes] if boxes else [])])
    names = {
        "url": ("url",),
        "caption": _CAPTIONS,
        **_SIZES,
        **{f"score.{name}": theirs for name, theirs in SCORES.items()},
        **{f"lineage.{name}": (name,) for name in _LINEAGE},
        **({"boxes": (boxes.lower(),)} if boxes else {}),
        **{ours: (theirs.lower(),) for ours, theirs in columns.items()},
    }
    chosen = {
        ours: found[_any(theirs, found)] for ours, theirs in names.items() if _any(theirs, found)
    }
    for ours in needed:
        same = [name for name in schema if name.lower() == chosen[ours].lower()]
        if len(same) > 1:
            raise UserError(f"{file}: columns {' and '.join(same)} differ in case only; rename one")
    return chosen


def _any(names: Sequence[str], found: Mapping[str, str]) -> str:
    """The first of the names that is a column; empty if none is."""
    return next(filter(found.__contains__, names), "")


_TEXT_FIELDS = ("raw", "text", "caption", "value", "sentence")


def caption_strings(
    file: Path, name: str, column: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, pa.Array | None]:
    """Captions one by one: those of lists in rows of their own, of structs their text.

    Returns:
        The captions and, if there are lists, the row of each; a row without any keeps a null.

    Raises:
        UserError: a struct has several strings, none of which is called like a text.
    """
    parents: pa.Array | None = None
    while not _is_text(column.type):
        kind = column.type
        if pa.types.is_struct(kind):
            strings = [field.name for field in kind if _is_text(field.type) or _is_list(field.type)]
            text = next((one for one in _TEXT_FIELDS if one in strings), None)
            if text is None and len(strings) != 1:
                has = ", ".join(strings)
                raise UserError(f"{file}: column {name} holds fields {has}: want one text")
            column = pc.struct_field(column, text or strings[0])
        elif _is_list(kind):
            filled = pa.chunked_array(
                [pa.array([one or [None] for one in column.to_pylist()], pa.list_(kind.value_type))]
            )
            rows = pc.list_parent_indices(filled).combine_chunks()
            parents = rows if parents is None else parents.take(rows)
            column = pc.list_flatten(filled)
        else:
            break
    return column, parents


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _strings(
    file: Path, name: str, column: pa.ChunkedArray, bad: dict[int, str]
) -> pa.ChunkedArray:
    """A column as strings; values that are not UTF-8 become null, and `bad` says so by row.

    Raises:
        UserError: it holds something else.
    """
    try:
        texts = column.cast(pa.string())
        texts.cast(pa.binary()).cast(pa.string())  # checks that they are UTF-8
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        types = pa.types
        if not (_is_text(column.type) or types.is_binary(column.type)):
            raise UserError(f"{file}: column {name} holds {column.type}, want strings") from None
        texts = pa.chunked_array(
            [[_decoded(name, value, row, bad) for row, value in enumerate(column)]], pa.string()
        )
    return texts


def _decoded(name: str, value: pa.Scalar, row: int, bad: dict[int, str]) -> str | None:
    try:
        text = value.as_py()
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        bad[row] = f"column {name}: {error}"
        return None


def _lineage(table: pa.Table, names: Mapping[str, str]) -> pa.Array:
    kept = {
        name.partition(".")[2]: _cells(table[theirs])
        for name, theirs in names.items()
        if name.startswith("lineage.")
    }
    rows = zip(*kept.values(), strict=True) if kept else ((),) * table.num_rows
    return pa.array(
        [
            json.dumps({k: str(v) for k, v in zip(kept, row, strict=True) if v is not None})
            for row in rows
        ],
        pa.string(),
    )


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """A column's values, None for those that Python cannot hold, such as invalid UTF-8."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        cells: list[Any] = []
        for value in column:
            cells.append(None)
            with contextlib.suppress(ValueError, OverflowError):
                cells[-1] = value.as_py()
        return cells


def _candidates(start: int, table: pa.Table) -> pa.Table:
    captions = table["caption"].fill_null("")
    both = zip(table["url"].to_pylist(), captions.to_pylist(), strict=True)
    columns = {
        "row": pa.array(np.arange(start, start + table.num_rows), pa.int64()),
        "id": pa.array([content_id("laion", parts) for parts in both], pa.string()),
        "url": table["url"],
        "turns": _pair_turns(captions),
        "lineage": table["lineage"],
    }
    rest = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table({**columns, **rest})


def require_columns(file: Path, found: Mapping[str, str], required: Sequence[str]) -> None:
    """Raise UserError unless all required columns are present, in any case."""
    for name in required:
        if name.lower() not in found:
            close = difflib.get_close_matches(name.lower(), found, n=1, cutoff=0.5)
            hint = f"; did you mean {found[close[0]]!r}?" if close else ""
            has = ", ".join(found.values())
            raise UserError(f"{file}: no column {name} among {has}{hint}")


def _numbers(file: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if name.lower() == "nsfw" and pa.types.is_string(column.type):
        return pa.chunked_array(
            [[_TAGS.get(str(tag).upper()) for tag in _cells(column)]], pa.float32()
        )
    try:
        numbers = column.cast(pa.float32(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{file}: column {name} holds {column.type}, want numbers") from None
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float32()), numbers)


def _boxes(file: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(BOXES)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"{file}: column {name} holds {column.type}, want lists of [x0, y0, x1, y1]"
        ) from None


def _regroup(tables: Iterator[pa.Table], rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Cut tables into tables of `rows` rows; yields each with the number of its first row."""
    start = 0
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        while sum(part.num_rows for part in pending) >= rows:
            joined = pa.concat_tables(pending)
            yield start, joined.slice(0, rows).combine_chunks()
            start += rows
            pending = [joined.slice(rows)]
    rest = pa.concat_tables(pending) if pending else None
    if rest is not None and rest.num_rows:
        yield start, rest.combine_chunks()


def _pair_turns(captions: pa.ChunkedArray) -> pa.Array:
    """The turns of an image (user) and its caption (assistant)."""
    count = len(captions)
    texts = pa.concat_arrays([pa.array(["<image>"]), *captions.chunks])
    order = np.zeros(2 * count, np.int64)
    order[1::2] = np.arange(1, count + 1)
    roles = pa.array(["user", "assistant"] * count, pa.string())
    turns = pa.StructArray.from_arrays([roles, texts.take(order)], names=["role", "text"])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * count + 1, 2), pa.int32()), turns)
