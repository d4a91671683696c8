"""Shards that lie there: what their columns tell of every row, and copies of some rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from etl.filters.base import Verdict
from etl.filters.text import pair_caption
from etl.media.image import ImageLimits, size_fault
from etl.runtime.job_state import Ledger
from etl.storage.atomic import file_sha256
from etl.storage.shards import Manifest, Shard, copy_rows


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """A shard's record batches, from a memory map."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def score_names(folder: Path, source: Manifest) -> list[str]:
    """The names of all scores of a folder, in order of the alphabet."""
    names: set[str] = set()
    for shard in source.shards:
        for batch in batches(folder / shard.path):
            names.update(pc.unique(batch["scores"].keys).to_pylist())
    return sorted(names)


def columns(path: Path, first: int, scores: Sequence[str]) -> pa.Table:
    """What the steps judge, of every row of a shard; its media's bytes are not looked at."""
    parts: list[pa.Table] = []
    for batch in batches(path):
        lineage = [dict(one or ()) for one in batch["lineage"].to_pylist()]
        media = batch["media"]
        sides = {
            name: pa.ListArray.from_arrays(media.offsets, media.values.field(name))
            for name in ("kind", "width", "height")
        }
        found = {
            "row": pa.array(range(first, first + batch.num_rows), pa.int64()),
            "id": batch["id"],
            "url": pa.array([one.get("url", one.get("file")) for one in lineage], pa.string()),
            "caption": pa.array(map(pair_caption, batch["turns"].to_pylist()), pa.string()),
            "lineage": pa.array(map(json.dumps, lineage), pa.string()),
            **sides,
        }
        for name in scores:
            values = pc.map_lookup(batch["scores"], query_key=name, occurrence="first")
            found[f"score.{name}"] = values
        parts.append(pa.table(found))
        first += batch.num_rows
    return pa.concat_tables(parts)


def image_sizes(table: pa.Table, *, limits: ImageLimits) -> Verdict:
    """Drop rows one of whose images is too small or too oblong.

    Args:
        table: needs the lists `kind`, `width` and `height`, an entry for each medium.
        limits: which images are kept.
    """
    names = ("kind", "width", "height")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    reasons = []
    for row in rows:
        media = zip(*row, strict=True)
        faults = (size_fault(w, h, limits) for kind, w, h in media if kind == "image")
        reasons.append(next(filter(None, faults), None))
    return Verdict(reasons=reasons)


class CopyShard:
    """Copies the rows of a shard that are kept, batch by batch, and declares it written.

    Args:
        output: the job's output folder.
        folder: the folder that is filtered.
        shards: its shards.
    """

    def __init__(self, output: Path, folder: Path, shards: Sequence[Shard]) -> None:
        self._ledger = Ledger(output)
        self._folder = folder
        self._shards = shards

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of one `number` and the rows to `keep` → `trouble`, or null."""
        return pa.table({"trouble": pa.array(map(self.row, table.to_pylist()), pa.string())})

    def row(self, item: dict[str, Any]) -> str | None:
        """What is wrong with the shard, if it is not what its manifest says."""
        before = self._shards[item["number"]]
        source = self._folder / before.path
        if file_sha256(source) != before.sha256:
            return f"{source}: shard is damaged: its sha256 is not its manifest's"
        rows = pa.array(range(before.rows), pa.int64())
        keep = pc.is_in(rows, pa.array(item["keep"], pa.int64()))
        shard = copy_rows(source, self._ledger.output / before.path, keep)
        self._ledger.save_written(item["number"], shard)
        return None


def on_ray(copy: CopyShard, items: Sequence[dict[str, Any]]) -> Iterator[str | None]:
    """What `CopyShard.row` says of every item, on a Ray cluster; in whatever order."""
    import ray  # noqa: PLC0415 - takes seconds, and is not needed without --ray

    from etl.runtime.ray_cluster import ray_cluster  # noqa: PLC0415

    if items:
        with ray_cluster():
            done = ray.data.from_items(list(items), override_num_blocks=len(items)).map_batches(
                copy, batch_size=None, batch_format="pyarrow"
            )
            for row in done.iter_rows():
                yield row["trouble"]
