"""Filtering existing shards: the columns that filters need, and copies of the rows they keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from etl.cli import UserError
from etl.filters.base import FilterResult
from etl.filters.text import pair_caption
from etl.media.image import ImageLimits, check_size
from etl.runtime.job_state import JobState
from etl.storage.atomic import file_sha256
from etl.storage.manifest import Manifest, Shard
from etl.storage.shards import copy_rows


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, from a memory map."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def score_names(folder: Path, manifest: Manifest) -> list[str]:
    """The names of all scores in a folder, sorted."""
    names: set[str] = set()
    for shard in manifest.shards:
        for batch in read_batches(folder / shard.path):
            names.update(pc.unique(batch["scores"].keys).to_pylist())
    return sorted(names)


def filter_columns(path: Path, first_row: int, scores: Sequence[str]) -> pa.Table:
    """The columns that filters need, for every row of a shard; reads no media bytes."""
    tables: list[pa.Table] = []
    for batch in read_batches(path):
        lineage = [dict(entries or ()) for entries in batch["lineage"].to_pylist()]
        media = batch["media"]
        media_fields = {
            name: pa.ListArray.from_arrays(media.offsets, media.values.field(name))
            for name in ("kind", "width", "height")
        }
        columns = {
            "row": pa.array(range(first_row, first_row + batch.num_rows), pa.int64()),
            "id": batch["id"],
            "url": pa.array([one.get("url", one.get("file")) for one in lineage], pa.string()),
            "caption": pa.array(map(pair_caption, batch["turns"].to_pylist()), pa.string()),
            "lineage": pa.array(map(json.dumps, lineage), pa.string()),
            **media_fields,
        }
        for name in scores:
            values = pc.map_lookup(batch["scores"], query_key=name, occurrence="first")
            columns[f"score.{name}"] = values
        tables.append(pa.table(columns))
        first_row += batch.num_rows
    return pa.concat_tables(tables)


def image_size(table: pa.Table, *, limits: ImageLimits) -> FilterResult:
    """Drop rows that have an image outside the size limits.

    Args:
        table: needs the lists `kind`, `width` and `height`, an entry for each medium.
        limits: which images are kept.
    """
    names = ("kind", "width", "height")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    reasons = []
    for row in rows:
        media = zip(*row, strict=True)
        found = (check_size(w, h, limits) for kind, w, h in media if kind == "image")
        reasons.append(next(filter(None, found), None))
    return FilterResult(reasons=reasons)


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The rows of a shard, by their numbers in it, that are kept."""

    number: int
    rows: Sequence[int]


class CopyShard:
    """Copies the rows of a shard that are kept, batch by batch, and records the new shard.

    Args:
        output: the job's output folder.
        folder: the input folder.
        shards: the input folder's shards.
    """

    def __init__(self, output: Path, folder: Path, shards: Sequence[Shard]) -> None:
        self._state = JobState(output)
        self._folder = folder
        self._shards = shards

    def __call__(self, kept: ShardRows) -> None:
        """Copy one shard; raises UserError if it does not match its manifest."""
        shard = self._shards[kept.number]
        source = self._folder / shard.path
        if file_sha256(source) != shard.sha256:
            raise UserError(f"{source}: shard is damaged: its sha256 differs from its manifest's")
        rows = pa.array(range(shard.rows), pa.int64())
        keep = pc.is_in(rows, pa.array(kept.rows, pa.int64()))
        written = copy_rows(source, self._state.output / shard.path, keep)
        self._state.save_final_shard(kept.number, written)
