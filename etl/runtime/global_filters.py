"""Steps over the whole job, after the download and before the final shards.

They judge the keys of all staged rows (`etl.runtime.worker.KEPT`) as one table in the input's
order, so the earliest of what is alike can stay, whatever order downloads ended in. What a complete
output keeps of them is `keys.parquet`, by which a retry tells what is there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.cli import UserError
from etl.dedup.decontaminate import EvalImages, EvalTexts
from etl.dedup.exact import FirstSeen
from etl.dedup.images import NearImages
from etl.dedup.texts import NearTexts
from etl.filters.base import Step, StepYield, run_steps
from etl.runtime.clip_filter import judgement
from etl.runtime.job_state import Ledger, read_table
from etl.runtime.options import JobOptions
from etl.runtime.scores import keys_and_scores
from etl.runtime.worker import KEPT, Identity
from etl.sources.base import TURNS
from etl.sources.evaluation_sets import Evaluation
from etl.storage.atomic import atomic_file
from etl.storage.shards import Manifest, ShardSet, shard_name

KEYS_FILE = "keys.parquet"
"""Every kept row of a job, in the shards' order: its shard's number and row, the key of its
identity and its media's perceptual hashes."""

_KEPT_KEYS = pa.schema(
    [("shard", pa.int64()), *(KEPT.field(name) for name in ("row", "key", "phash"))]
)


@dataclass(frozen=True, kw_only=True)
class Late:
    """What the steps made of the ranges.

    `rows` has of every range those that stay, `keys` all of them, as `keys.parquet` does.
    """

    rows: Mapping[int, Sequence[int]]
    keys: pa.Table
    drops: pa.Table
    yields: tuple[StepYield, ...]


def settle(
    ledger: Ledger,
    ranges: Sequence[int],
    steps: Sequence[Step],
    *,
    before: pa.Table | None = None,
) -> Late:
    """Run the staged rows of the whole job through steps.

    Holds in memory what the steps need of all rows, about 200 bytes each, and their texts only if a
    step needs them.

    Args:
        ledger: where all ranges are done.
        ranges: how many candidates each has.
        steps: in order; each sees the whole job at once.
        before: rows that stay whatever is staged (see `kept_before`).
    """
    numbers = [number for number, rows in enumerate(ranges) if rows]
    needs = texts_needed(steps)
    tables = [_staged(ledger, number, needs) for number in numbers]
    if before is not None:
        tables.insert(0, before)
    # What was kept before has no scores that were computed since: null.
    outcome = run_steps(pa.concat_tables(tables, promote_options="default"), steps)
    drops, kept = outcome.drops, outcome.kept
    if before is not None:
        drops = drops.filter(pc.invert(pc.is_in(drops["row"], before["row"].combine_chunks())))
        kept = kept.filter(pc.greater_equal(kept["shard"], 0))
    rows: dict[int, list[int]] = {number: [] for number in numbers}
    for number, row in zip(kept["shard"].to_pylist(), kept["row"].to_pylist(), strict=True):
        rows[number].append(row)
    return Late(
        rows=rows,
        keys=kept.select(_KEPT_KEYS.names).cast(_KEPT_KEYS),
        drops=drops,
        yields=outcome.yields,
    )


def steps_after(options: JobOptions, identity: Identity) -> tuple[Step, ...]:
    """The steps that options ask for.

    Args:
        options: of the job.
        identity: what a duplicate is.
    """
    unit = "medium" if identity == "medium" else "record"
    steps = [judgement(options.clip)] if options.clip else []
    steps.append(Step(name="dedup", operation=FirstSeen("key", f"duplicate_{unit}")))
    if options.near_images is not None:
        near = NearImages(distance=options.near_images, identity=identity)
        steps.append(Step(name="near images", operation=near))
    if options.near_text is not None:
        alike = NearTexts(jaccard=options.near_text, identity=identity)
        steps.append(Step(name="near texts", operation=alike, needs=("turns",)))
    if options.decontaminate:
        sets = Evaluation(options.decontaminate)
        images = EvalImages(items=sets, distance=options.eval_distance)
        steps.append(Step(name="eval images", operation=images))
        steps.append(Step(name="eval texts", operation=EvalTexts(items=sets), needs=("turns",)))
    return tuple(steps)


def texts_needed(steps: Sequence[Step]) -> bool:
    """Whether a step needs the column `turns`."""
    return any("turns" in step.needs for step in steps)


def _staged(ledger: Ledger, number: int, texts: bool) -> pa.Table:
    keys = keys_and_scores(ledger, number)
    keys = keys.append_column("shard", pa.array([number] * keys.num_rows, pa.int64()))
    if not texts:
        return keys
    turns = pa.field("turns", TURNS)
    if not keys.num_rows:  # there is no shard
        return keys.append_column(turns, pa.array([], TURNS))
    return keys.append_column(turns, read_table(ledger.staged_path(number))["turns"])


def save_keys(output: Path, keys: Sequence[pa.Table]) -> None:
    """Write `keys.parquet`; a row counts only if the manifest names its shard."""
    with atomic_file(output / KEYS_FILE) as stream:
        pq.write_table(pa.concat_tables(keys), stream)


def read_keys(output: Path, manifest: Manifest) -> pa.Table:
    """The keys of all that a complete folder holds, in order.

    Raises:
        UserError: they are not there, or not those of the folder.
    """
    path = output / KEYS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; without it nothing can be added to {output}")
    keys = pq.read_table(path)
    numbers = {shard_name(number): number for number in pc.unique(keys["shard"]).to_pylist()}
    there = [numbers[shard.path] for shard in manifest.shards if shard.path in numbers]
    keys = keys.filter(pc.is_in(keys["shard"], pa.array(there, pa.int64())))
    if keys.num_rows != manifest.rows:
        raise UserError(f"{path}: {keys.num_rows} rows, the manifest says {manifest.rows}")
    return keys.cast(_KEPT_KEYS)


def kept_before(output: Path, manifest: Manifest, steps: Sequence[Step]) -> pa.Table:
    """What a complete folder holds, as the steps see it."""
    keys = read_keys(output, manifest)
    rows = keys.num_rows
    table = keys.select(["row", "key", "phash"])
    for name in ("id", "url"):
        table = table.append_column(name, pa.nulls(rows, pa.string()))
    table = table.select(KEPT.names).append_column("shard", pa.array([-1] * rows, pa.int64()))
    if not texts_needed(steps):
        return table
    turns = pa.array([], TURNS)
    if rows:
        turns = ShardSet([output], verify=False).columns(["turns"])["turns"]
    return table.append_column("turns", turns)
