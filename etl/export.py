"""Shards to other libraries' formats: `python etl/export.py --input SHARDS --to parquet …`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError, main, parse
from etl.storage.atomic import remove_partials, write_json
from etl.storage.exported import (
    ExportFormat,
    pair_kind,
    write_archive,
    write_files,
    write_parquet,
)
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet

_log = logging.getLogger("etl")

STATE = "export.state"
"""JSON of what a folder was exported from, and its files; `rows` is null until it is complete.

Its suffix keeps it from being read as a list."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the samples of a complete folder of shards so that other libraries read them.

    webdataset: tar archives of KEY.jpg, KEY.txt and KEY.json. parquet: as Hugging Face datasets
    writes images, sounds and videos. folder: media as files, and metadata.jsonl. Pairs have their
    text as such, other samples their turns as messages. To resume a killed export, repeat the
    command. etl/pairs.py reads pairs again, etl/instruct.py dialogues, etl/preference.py those with
    a rejected answer.
    """

    input: Path
    """Folder of shards, with their manifest.json."""
    output: Path
    """Folder for the result."""
    to: ExportFormat
    """The format."""
    rows_per_file: int = 1000
    """Samples of an archive, a parquet file or a folder of files."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            raise UserError(f"--rows-per-file {self.rows_per_file}: want 1 or more")


def export(options: Options) -> dict[str, Any]:
    """Export a folder; returns what `export.state` says: rows, and files.

    Raises:
        UserError: the input is no complete folder, or the output belongs to something else.
    """
    samples = ShardSet([options.input])
    kind = _kind(samples)
    state = {
        **{"to": options.to, "input_sha256": samples.fingerprint},
        **{"rows_per_file": options.rows_per_file, "pairs_of": kind},
    }
    _claim(options.output, state)
    files: list[str] = []
    for first in range(0, len(samples), options.rows_per_file):
        part = range(first, min(first + options.rows_per_file, len(samples)))
        files.append(_write(options, samples, part, len(files), kind))
    result = {**state, "rows": len(samples), "files": files}
    write_json(options.output / STATE, result)
    return result


def _kind(samples: ShardSet) -> str | None:
    """The kind of medium if all samples are pairs of one kind and nothing else; else None."""
    kinds: set[str | None] = set()
    for table in samples.batches(["turns", "media.kind", "rejected", "feedback"]):
        for row in table.to_pylist():
            turns = [Turn(**turn) for turn in row["turns"]]
            more = row["rejected"] or row["feedback"]
            kinds.add(None if more else pair_kind(turns, row["media.kind"]))
        if None in kinds or len(kinds) > 1:
            return None
    return kinds.pop() if kinds else None


def _claim(output: Path, state: dict[str, Any]) -> None:
    """Make sure that a folder is empty, or what is left of the same export."""
    path = output / STATE
    if path.is_file():
        try:
            found = json.loads(path.read_bytes())
            same = all(found.get(name) == value for name, value in state.items())
        except (ValueError, AttributeError):
            same = False
        if not same:
            raise UserError(f"--output {output}: holds another export; want an empty folder")
        remove_partials(output)
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: want an empty folder")
    write_json(path, {**state, "rows": None})


def _write(options: Options, samples: ShardSet, part: range, number: int, kind: str | None) -> str:
    """Write one file, or one folder of files, unless it is there; returns its name."""
    chosen: Iterator[Sample] = (samples[index] for index in part)
    if options.to == "folder":
        name = f"{number:05d}"
        remove_partials(options.output / name)
        if not (options.output / name / "metadata.jsonl").exists():
            write_files(options.output / name, chosen, part.start, kind)
        return name
    is_archive = options.to == "webdataset"
    name = f"{number:05d}.{'tar' if is_archive else 'parquet'}"
    if not (options.output / name).exists():
        write = write_archive if is_archive else write_parquet
        write(options.output / name, chosen, part.start, kind)
    return name


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/export.py", args=args)
    result = export(options)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        _log.info(
            "%s: %s samples in %s files", options.output, result["rows"], len(result["files"])
        )


if __name__ == "__main__":
    main(run)
