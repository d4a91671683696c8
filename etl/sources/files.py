"""Input files and their rows: JSON, lines of JSON, parquet and Arrow, compressed or not."""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import itertools
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from etl.cli import UserError
from etl.media.embedded import TableFile, cell_location

_log = logging.getLogger("etl")

_COMPRESSED = (".gz", ".zst")
_ALSO = {".jsonl": (".ndjson",), ".parquet": (".arrow",)}
"""Suffix → others of files with the same content."""

DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading a damaged file raises, compressed ones too."""

_SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `datasets.save_to_disk` is recognised."""

_SHOWN = 3


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why; it becomes a row that is dropped as `bad_record`."""

    error: str


def input_files(path: Path, *suffixes: str) -> list[Path]:
    """The input's files: the file itself, or those in a folder that have one of the suffixes.

    A folder is searched recursively; JSON documents next to parquet are left out. A folder of
    `datasets.save_to_disk` has the files that it lists. A path with `*`, `?` or `[` that does not
    exist is a pattern. Each suffix may be followed by `.gz` or `.zst`; `.ndjson` counts as
    `.jsonl`, and `.arrow` as `.parquet`. Empty files and those that macOS adds (`._x`) are left
    out, and a log line names them.

    Args:
        path: a file, a folder or a pattern.
        suffixes: of the files in a folder.

    Returns:
        The files in the order of their paths.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _folder_files(path, suffixes)
    else:
        root = input_root(path)
        if not root.is_dir() or (root == path.parent and not glob.has_magic(path.name)):
            raise UserError(f"--input {path}: no such file or folder")
        files = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
        if not files:
            raise UserError(f"--input {path}: no file matches")
    usable = [file for file in files if not file.name.startswith("._") and file.stat().st_size]
    if files and not usable:
        raise UserError(f"{files[0]}: the file is empty")
    if not files:
        raise UserError(f"--input {path}: the folder holds no {' or '.join(suffixes)} file")
    _log_skipped(path, [file for file in files if file not in set(usable)])
    return usable


def input_root(path: Path) -> Path:
    """The folder to which the paths of the input's files are relative."""
    if glob.has_magic(str(path)) and not path.exists():
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        return Path(*fixed)
    return path if path.is_dir() else path.parent


_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "export.json")
"""Files in a folder that say what its data are: those of Hugging Face's repositories, and ours."""


def _folder_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    saved = saved_files(folder)
    if saved is not None:
        return saved
    wanted = tuple(_with_variants(suffixes))
    every = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in every if file.name.endswith(wanted) and file.name not in _ABOUT]
    if any(plain_suffix(file) == ".parquet" for file in files):  # documents next to it describe it
        files = [file for file in files if plain_suffix(file) != ".json"]
    others = [file for file in every if file not in set(files)]
    if files and others:
        names = ", ".join(file.name for file in others[:_SHOWN])
        more = ", …" if len(others) > _SHOWN else ""
        _log.info("%s: %s other files are not read (%s%s)", folder, len(others), names, more)
    return files


def _with_variants(suffixes: Sequence[str]) -> Iterator[str]:
    for suffix in suffixes:
        for one in (suffix, *_ALSO.get(suffix, ())):
            yield one
            yield from (one + compressed for compressed in _COMPRESSED)


def saved_files(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote; None if it is not one.

    A `DatasetDict` is a folder per split, which `dataset_dict.json` lists; `state.json` of each
    lists its files (https://github.com/huggingface/datasets, `Dataset.save_to_disk`).

    Raises:
        UserError: these lists are damaged.
    """
    if not any((folder / name).is_file() for name in _SAVED):
        return None
    try:
        if (folder / _SAVED[0]).is_file():
            splits = json.loads((folder / _SAVED[0]).read_bytes())["splits"]
            parts = [saved_files(folder / split) or [] for split in splits]
            return [file for part in parts for file in part]
        listed = json.loads((folder / _SAVED[1]).read_bytes())["_data_files"]
        files = [folder / Path(entry["filename"]).name for entry in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: want the folder of datasets.save_to_disk ({error!r})") from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file, though {_SAVED[1]} lists it")
    return files


def _log_skipped(path: Path, files: Sequence[Path]) -> None:
    if files:
        names = ", ".join(file.name for file in files[:_SHOWN])
        more = ", …" if len(files) > _SHOWN else ""
        _log.warning(
            "%s: %s empty or hidden files are skipped (%s%s)", path, len(files), names, more
        )


def plain_suffix(file: Path) -> str:
    """A file's suffix without that of its compression, in lower case; `.jsonl` for `.ndjson`."""
    name = file.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    suffix = Path(name).suffix
    return next((one for one, others in _ALSO.items() if suffix in others), suffix)


def open_file(file: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if its first bytes are those of gzip or zstd."""
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(file))
    if magic == b"\x28\xb5\x2f\xfd":
        stream = pa.input_stream(str(file), compression="zstd")
        return cast(IO[bytes], io.BufferedReader(stream))  # has readline, which Arrow's lacks
    return file.open("rb")


def read_json(file: Path) -> Any:  # noqa: ANN401 - parsed JSON
    """A JSON document; bytes that are not UTF-8 become surrogates, which spoil one record only.

    Raises:
        UserError: it is not JSON.
    """
    try:
        with open_file(file) as stream:
            data = stream.read()
        return json.loads(data.decode(json.detect_encoding(data), "surrogateescape"))
    except (ValueError, LookupError, RecursionError, *DAMAGE) as error:
        raise UserError(f"{file}: not JSON ({error})") from None


def json_rows(file: Path) -> list[Any]:
    """The entries of a JSON list, or of lines of JSON, whatever the file's suffix.

    Raises:
        UserError: it is not such a file, or has no entries.
    """
    if plain_suffix(file) == ".jsonl" or holds_lines(file):
        records: Any = list(json_lines(file))
    else:
        records = read_json(file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{file}: want a list of records, and at least one")
    return records


def holds_lines(file: Path) -> bool:
    """Whether a file's first two lines that are not empty are a JSON object each."""
    try:
        lines = list(itertools.islice(_lines(file), 2))
    except DAMAGE:
        return False
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for _, line in lines)
    except (ValueError, RecursionError):
        return False


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with open_file(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line


def text_lines(file: Path) -> Iterator[str]:
    """The lines of a text file that are not empty, without their ends.

    Bytes that are not UTF-8 become surrogates, which spoil one record only.

    Raises:
        UserError: the file is damaged, or in UTF-16.
    """
    try:
        for number, line in _lines(file):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{file}: not UTF-8, but UTF-16")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
            yield text.rstrip("\r\n")
    except DAMAGE as error:
        raise UserError(f"{file}: damaged ({error})") from None


def json_lines(file: Path) -> Iterator[Any]:
    """The values of a file's lines of JSON; empty lines are skipped, others become a `BadRow`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        for number, line in _lines(file):
            try:
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                row = json.loads(line.decode(encoding, "surrogateescape"))
            except (ValueError, RecursionError) as error:
                row = BadRow(f"line {number} is not JSON ({error})")
            yield row
    except DAMAGE as error:
        raise UserError(f"{file}: damaged ({error})") from None


def rows_in(*keys: str) -> Callable[[Path], list[Any]]:
    """A reader of the list under nested keys of a JSON document."""

    def rows(file: Path) -> list[Any]:
        value = read_json(file)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, list) or not value:
            raise UserError(f"{file}: want a list of records in {'.'.join(keys)!r}")
        return value

    return rows


def parquet_or_json_rows(file: Path) -> Iterator[Any]:
    """Rows of parquet or Arrow (see `table_rows`), of a JSON list, or of lines of JSON.

    Raises:
        UserError: the file is none of these.
    """
    yield from (table_rows if plain_suffix(file) == ".parquet" else json_rows)(file)


def table_rows(file: Path) -> Iterator[Any]:
    """The rows of a parquet or Arrow file as dicts; of media only where their bytes are.

    A cell `{bytes, path}`, as `datasets` writes images, sounds and videos, becomes its location
    (`etl.media.embedded`), or its path if it has no bytes; a cell of bytes becomes its location.
    A row that cannot be read, such as one of invalid UTF-8, becomes a `BadRow`.

    Raises:
        UserError: the file is neither, or damaged.
    """
    table = TableFile(file)
    try:
        for first, batch in table.batches():
            columns = [_cells(name, batch.column(name), first) for name in batch.schema.names]
            for cells in zip(*columns, strict=True):
                bad = next((cell for cell in cells if isinstance(cell, BadRow)), None)
                yield bad or dict(zip(batch.schema.names, cells, strict=True))
    except DAMAGE as error:
        raise UserError(f"{file}: damaged ({error})") from None


def _cells(name: str, column: pa.Array, first: int) -> list[Any]:
    """A column's values; a cell that cannot be converted becomes a `BadRow`."""
    embedded = _holds_bytes(column.type)
    if not embedded:
        with contextlib.suppress(Exception):  # one cell is bad: which one is found below
            return column.to_pylist()
    return [_cell(name, column, row, first + row, embedded=embedded) for row in range(len(column))]


def _cell(name: str, column: pa.Array, index: int, row: int, *, embedded: bool) -> Any:  # noqa: ANN401
    try:
        scalar = column[index]
        return _without_bytes(scalar, [row, name]) if embedded else scalar.as_py()
    except Exception as error:  # whatever a value is that Python cannot hold
        return BadRow(f"column {name!r}: {error}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if _is_bytes(kind):
        return True
    if pa.types.is_dictionary(kind) or pa.types.is_map(kind):
        return False
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _without_bytes(value: pa.Scalar, steps: list[int | str]) -> Any:  # noqa: ANN401
    """A cell as Python has it, with locations in place of bytes."""
    kind = value.type
    if not value.is_valid:
        return None
    if _is_bytes(kind):
        return cell_location(steps)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if "bytes" in names and _is_bytes(kind.field("bytes").type):
            path = value["path"].as_py() if "path" in names else None
            return cell_location(steps, path) if value["bytes"].is_valid else path
        return {name: _without_bytes(value[name], [*steps, name]) for name in names}
    if hasattr(value, "values") and _holds_bytes(kind):
        entries = value.values
        return [_without_bytes(entries[n], [*steps, n]) for n in range(len(entries))]
    return value.as_py()
