"""Input files and their rows: JSON, lines of JSON, parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etl.cli import UserError


def input_files(path: Path, *suffixes: str) -> list[Path]:
    """The input's files: the file itself, or a folder's files with one of the suffixes, sorted.

    Raises:
        UserError: there are none, or one is empty.
    """
    if not path.exists():
        raise UserError(f"--input {path}: no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(suffixes))
    if not files:
        raise UserError(f"--input {path}: the folder holds no {' or '.join(suffixes)} file")
    for file in files:
        if not file.stat().st_size:
            raise UserError(f"{file}: the file is empty")
    return files


def read_json(file: Path) -> Any:  # noqa: ANN401 - parsed JSON
    """A JSON document.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None


def json_rows(file: Path) -> list[Any]:
    """The entries of a JSON list, or of lines of JSON in a `.jsonl` file.

    Raises:
        UserError: it is not such a file, or has no entries.
    """
    if file.suffix == ".jsonl":
        records: Any = list(json_lines(file))
    else:
        records = read_json(file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{file}: want a list of records, and at least one")
    return records


def json_lines(file: Path) -> Iterator[Any]:
    """The values of a file's lines of JSON; empty lines are skipped.

    Raises:
        UserError: a line is not JSON.
    """
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}: line {number} is not JSON ({error})") from None


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
    """Rows of parquet, of a JSON list, or of lines of JSON.

    Raises:
        UserError: the file is none of these.
    """
    if file.suffix != ".parquet":
        yield from json_rows(file)
        return
    try:
        for batch in pq.ParquetFile(file).iter_batches(64):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a parquet file ({error})") from None
