"""Media inside the input's own files: members of tar archives, cells of parquet and Arrow tables.

Planning reads positions only, and a worker reads the bytes from there, so that no list of media is
held in memory, and a job resumes like one that downloads. A location is a URL of its own scheme:

    input:cats/1.jpg                                 a file of the input folder
    input:00000.tar#1536+20480/000000012.jpg         20,480 bytes of an archive, at 1,536
    input:train-0.parquet#12/image                   row 12, column `image`
    input:data/train-0.arrow#12/messages/0/images/1  a cell inside structs and lists

Paths are relative to the input folder, or to the folder of the input file; names are
percent-encoded. Readers of a file leave its path out (`input:#12/image`), and `RecordReader` adds
it, so that a location depends neither on the working directory nor on where the input is.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq

from etl.cli import UserError
from etl.download.base import Fetched
from etl.filters.urls import EMBEDDED

BATCH_BYTES = 16 << 20
"""About how many bytes of a table are decoded at a time."""

_BATCH_ROWS = 256
_OPEN_FILES = 8


class Location(str):
    """Where an embedded medium's bytes are; `name` is the file name that its table gives it."""

    name: str | None = None


def _location(text: str, name: str | None) -> Location:
    location = Location(text)
    location.name = name
    return location


def file_location(name: str) -> Location:
    """The location of a whole file, whose path is relative to the input's folder."""
    return _location(f"{EMBEDDED}{_quote(name)}", name)


def member_location(offset: int, size: int, name: str) -> Location:
    """The location of an archive's member, in a file that is yet to be named."""
    return _location(f"{EMBEDDED}#{offset}+{size}/{_quote(name)}", name)


def cell_location(steps: Sequence[int | str], name: str | None = None) -> Location:
    """The location of a table's cell: its row, its column, then list indices and field names."""
    path = "/".join(quote(str(step), safe="") for step in steps)
    return _location(f"{EMBEDDED}#{path}", name)


def in_file(location: str, file: str) -> str:
    """A location with the path of its file, which is relative to the input's folder."""
    return f"{EMBEDDED}{_quote(file)}{location.removeprefix(EMBEDDED)}"


def is_embedded(url: str) -> bool:
    """Whether a medium's URL is a location in the input."""
    return url.startswith(EMBEDDED)


def is_unnamed(url: str) -> bool:
    """Whether a location lacks its file."""
    return url.startswith(f"{EMBEDDED}#")


def _quote(name: str) -> str:
    return quote(os.fsencode(name), safe="/")  # also names that are not UTF-8


class EmbeddedMedia:
    """Reads media from the input's files by their locations.

    Args:
        root: the input folder, or the folder of the input file; no location leads out of it.
        max_bytes: the maximum size of a medium.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._tables: OrderedDict[Path, TableFile] = OrderedDict()

    def read(self, location: str) -> Fetched:
        """The bytes at a location, or the reason for the failure."""
        file, _, fragment = location.removeprefix(EMBEDDED).partition("#")
        try:
            path = self._path(os.fsdecode(unquote_to_bytes(file)))
            first, *steps = fragment.split("/")
            if not fragment:
                return self._read_member(path, 0, path.stat().st_size)
            if "+" in first:
                return self._read_member(path, *map(int, first.split("+")))
            return self._read_cell(path, int(first), steps)
        except Exception as error:  # whatever a damaged table makes its decoder raise
            detail = f"{location.removeprefix(EMBEDDED)}: {type(error).__name__}: {error}"
            return Fetched(reason="unreadable_file", detail=detail)

    def _path(self, name: str) -> Path:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("the path leads out of the input folder")
        return self._root / path

    def _read_member(self, path: Path, offset: int, size: int) -> Fetched:
        if size > self._max_bytes:
            return Fetched(reason="body_too_large", detail=f"{size} bytes")
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise EOFError(f"{size - len(data)} bytes are missing")
        return Fetched(data=data)

    def _read_cell(self, path: Path, row: int, steps: Sequence[str]) -> Fetched:
        table = self._tables.pop(path, None) or TableFile(path)
        self._tables[path] = table
        if len(self._tables) > _OPEN_FILES:
            self._tables.popitem(last=False)
        column, *rest = (unquote_to_bytes(step).decode() for step in steps)
        value: Any = table.cell(row, column)
        for step in rest:
            value = value[step] if pa.types.is_struct(value.type) else value.values[int(step)]
        if pa.types.is_struct(value.type):
            value = value["bytes"]
        buffer = value.as_buffer()
        if buffer is None:
            return Fetched(reason="unreadable_file", detail=f"{path.name}: the cell is empty")
        if buffer.size > self._max_bytes:
            return Fetched(reason="body_too_large", detail=f"{buffer.size} bytes")
        return Fetched(data=buffer.to_pybytes())


class TableFile:
    """A parquet file, an Arrow IPC file or an Arrow IPC stream, read in batches.

    `datasets.save_to_disk` writes streams (https://arrow.apache.org/docs/format/Columnar.html#ipc).

    Raises:
        UserError: the file is none of these, or two of its columns have the same name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cursors: dict[str, _Cursor] = {}
        with path.open("rb") as stream:
            magic = stream.read(6)
        self._parquet: pq.ParquetFile | None = None
        try:
            if magic.startswith(b"PAR1"):
                self._parquet = pq.ParquetFile(path, memory_map=True)
                self.schema = self._parquet.schema_arrow
            else:
                self._is_stream = magic != b"ARROW1"
                self.schema = self._open().schema
        except (pa.ArrowException, OSError, ValueError) as error:
            what = "parquet" if path.name.endswith(".parquet") else "parquet or Arrow"
            raise UserError(f"{path}: not a {what} file ({error})") from None
        twice = [name for name in set(self.schema.names) if self.schema.names.count(name) > 1]
        if twice:
            raise UserError(f"{path}: two columns are called {min(twice)!r}; rename one")

    def batches(
        self, columns: Sequence[str] | None = None, start: int = 0, rows: int = _BATCH_ROWS
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches of at most `rows` rows, each with the number of its first row.

        Args:
            columns: the columns to decode; default: all.
            start: a row; batches that are known to end before it are left out.
            rows: the maximum rows of a batch, fewer if these are large.

        Raises (when read):
            pa.ArrowException, OSError: the file is damaged.
        """
        first = 0
        for batch in self._batches(columns, start, rows):
            if isinstance(batch, int):
                first += batch
                continue
            for begin in range(0, batch.num_rows, rows):
                part = batch.slice(begin, rows)
                if first + part.num_rows > start:
                    yield first, part
                first += part.num_rows

    @property
    def is_empty(self) -> bool:
        """Whether it has no rows."""
        if self._parquet:
            return not self._parquet.metadata.num_rows
        return next(self.batches(rows=1), None) is None

    def cell(self, row: int, column: str) -> pa.Scalar:
        """One cell; rows in ascending order are read without decoding any batch twice."""
        cursor = self._cursors.setdefault(column, _Cursor(self, column))
        return cursor.cell(row)

    def _batches(
        self, columns: Sequence[str] | None, start: int, rows: int
    ) -> Iterator[pa.RecordBatch | int]:
        """Batches of any size, or numbers of rows that are left out."""
        if self._parquet is None:
            reader = self._open()
            names = None if columns is None else list(columns)
            batches: Any = reader
            if not self._is_stream:
                batches = map(reader.get_batch, range(reader.num_record_batches))
            for batch in batches:
                chosen = batch if names is None else batch.select(names)
                for column in chosen.columns:
                    _validate(column)
                yield chosen
            return
        first = 0
        for group in range(self._parquet.num_row_groups):
            metadata = self._parquet.metadata.row_group(group)
            first += metadata.num_rows
            if first <= start:
                yield metadata.num_rows
                continue
            mean = metadata.total_byte_size // max(1, metadata.num_rows) + 1
            size = max(1, min(rows, BATCH_BYTES // mean))
            yield from self._parquet.iter_batches(size, row_groups=[group], columns=columns)

    def _open(self) -> Any:  # noqa: ANN401 - a RecordBatchFileReader or -StreamReader
        source = pa.memory_map(str(self._path))
        return pa.ipc.open_stream(source) if self._is_stream else pa.ipc.open_file(source)


def _validate(column: pa.Array) -> None:
    """Check that a column's offsets and indices lie within its buffers.

    Arrow's own files have no checksums, and reading a damaged one would crash the process. Texts
    are checked as bytes: one that is not UTF-8 spoils one row only.

    Raises:
        pa.ArrowInvalid: they do not.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """A type with bytes in place of texts."""
    types = pa.types
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        make = pa.list_ if types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


class _Cursor:
    """A column of a table, of which the batch that was read last is held."""

    def __init__(self, table: TableFile, column: str) -> None:
        self._table = table
        self._column = column
        self._rest: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._first = 0
        self._batch: pa.RecordBatch | None = None

    def cell(self, row: int) -> pa.Scalar:
        if self._batch is None or row < self._first:
            self._rest = self._table.batches([self._column], row)
            self._first, self._batch = next(self._rest)
        while row >= self._first + self._batch.num_rows:
            self._first, self._batch = next(self._rest)
        return self._batch.column(self._column)[row - self._first]
