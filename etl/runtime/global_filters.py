"""Global filters: they see the whole job at once, after the download, before the final shards.

They receive the keys of all staged rows (`etl.runtime.worker.STAGED_SCHEMA`) as one table in input
order, so the earliest of several duplicates is kept, whatever order downloads finished in. The keys
of the rows that are kept are saved as `keys.parquet`, which a later `--retry-failed` reads.
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
from etl.filters.base import DROPS, Filter, StepYield, run_filters
from etl.runtime.clip_filter import clip_filter
from etl.runtime.job_state import JobState, read_table
from etl.runtime.options import JobOptions
from etl.runtime.scores import keys_and_scores
from etl.runtime.worker import STAGED_SCHEMA
from etl.sources.base import TURNS, Identity
from etl.sources.evaluation_sets import EvaluationSets
from etl.storage.atomic import atomic_file
from etl.storage.manifest import Manifest
from etl.storage.shards import ShardSet, shard_name

KEYS_FILE = "keys.parquet"
"""All rows that a job kept, in shard order: shard number, input row, identity key, and the
perceptual hashes of the row's media."""

_KEYS_SCHEMA = pa.schema(
    [("shard", pa.int64()), *(STAGED_SCHEMA.field(name) for name in ("row", "key", "phash"))]
)


@dataclass(frozen=True, kw_only=True)
class GlobalResult:
    """What the global filters kept and dropped.

    `rows` maps each unit to the input rows that it keeps; `keys` has all of these rows, in the
    columns of `keys.parquet`.
    """

    rows: Mapping[int, Sequence[int]]
    keys: pa.Table
    drops: pa.Table
    yields: tuple[StepYield, ...]


def run_global_filters(
    state: JobState,
    unit_rows: Sequence[int],
    filters: Sequence[Filter],
    *,
    previous: pa.Table | None = None,
) -> GlobalResult:
    """Filter the staged rows of the whole job.

    Holds the filters' columns of all rows in memory, about 200 bytes each, and their texts only if
    a filter needs them.

    Args:
        state: a job all of whose units are done.
        unit_rows: number of candidates in each unit.
        filters: in order; each sees the whole job at once.
        previous: rows of an earlier run, which are kept in any case (see `previous_rows`).
    """
    numbers = [number for number, rows in enumerate(unit_rows) if rows]
    with_texts = needs_texts(filters)
    tables = [_staged(state, number, with_texts) for number in numbers]
    if previous is not None:
        tables.insert(0, previous)
    if not sum(table.num_rows for table in tables):
        return _nothing_staged(numbers, filters)
    # Rows of an earlier run lack the scores that were computed since: null.
    filtered = run_filters(pa.concat_tables(tables, promote_options="default"), filters)
    drops, kept = filtered.drops, filtered.kept
    if previous is not None:
        drops = drops.filter(pc.invert(pc.is_in(drops["row"], previous["row"].combine_chunks())))
        kept = kept.filter(pc.greater_equal(kept["shard"], 0))
    rows: dict[int, list[int]] = {number: [] for number in numbers}
    for number, row in zip(kept["shard"].to_pylist(), kept["row"].to_pylist(), strict=True):
        rows[number].append(row)
    return GlobalResult(
        rows=rows,
        keys=kept.select(_KEYS_SCHEMA.names).cast(_KEYS_SCHEMA),
        drops=drops,
        yields=filtered.yields,
    )


def _nothing_staged(numbers: Sequence[int], filters: Sequence[Filter]) -> GlobalResult:
    """The result of a job none of whose rows got this far."""
    return GlobalResult(
        rows={number: [] for number in numbers},
        keys=_KEYS_SCHEMA.empty_table(),
        drops=DROPS.empty_table(),
        yields=tuple(StepYield(step=one.name, rows_in=0, rows_out=0) for one in filters),
    )


def global_filters(options: JobOptions, identity: Identity) -> tuple[Filter, ...]:
    """The global filters that the options select.

    Args:
        options: the job's options.
        identity: what counts as a duplicate.
    """
    unit = "medium" if identity == "medium" else "record"
    filters = [clip_filter(options.clip)] if options.clip else []
    filters.append(Filter(name="dedup", function=FirstSeen("key", f"duplicate_{unit}")))
    if options.image_dedup_distance is not None:
        images = NearImages(distance=options.image_dedup_distance, identity=identity)
        filters.append(Filter(name="image dedup", function=images))
    if options.text_dedup_similarity is not None:
        texts = NearTexts(similarity=options.text_dedup_similarity, identity=identity)
        filters.append(Filter(name="text dedup", function=texts, needs=("turns",)))
    if options.decontaminate:
        sets = EvaluationSets(options.decontaminate)
        eval_images = EvalImages(items=sets, distance=options.eval_distance)
        eval_texts = EvalTexts(items=sets)
        filters.append(Filter(name="image decontamination", function=eval_images))
        filters.append(Filter(name="text decontamination", function=eval_texts, needs=("turns",)))
    return tuple(filters)


def needs_texts(filters: Sequence[Filter]) -> bool:
    """Whether a filter needs the column `turns`."""
    return any("turns" in one.needs for one in filters)


def _staged(state: JobState, number: int, with_texts: bool) -> pa.Table:
    keys = keys_and_scores(state, number)
    keys = keys.append_column("shard", pa.array([number] * keys.num_rows, pa.int64()))
    if not with_texts:
        return keys
    turns = pa.field("turns", TURNS)
    if not keys.num_rows:  # then there is no shard to read
        return keys.append_column(turns, pa.array([], TURNS))
    return keys.append_column(turns, read_table(state.staged_path(number))["turns"])


def save_keys(output: Path, keys: Sequence[pa.Table]) -> None:
    """Write `keys.parquet`; a row counts only if the manifest lists its shard."""
    with atomic_file(output / KEYS_FILE) as stream:
        pq.write_table(pa.concat_tables(keys), stream)


def read_keys(output: Path, manifest: Manifest) -> pa.Table:
    """The keys of all rows of a complete folder, in order.

    Raises:
        UserError: the file is missing or does not match the folder.
    """
    path = output / KEYS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; without it nothing can be added to {output}")
    keys = pq.read_table(path)
    numbers = {shard_name(number): number for number in pc.unique(keys["shard"]).to_pylist()}
    listed = [numbers[shard.path] for shard in manifest.shards if shard.path in numbers]
    keys = keys.filter(pc.is_in(keys["shard"], pa.array(listed, pa.int64())))
    if keys.num_rows != manifest.rows:
        raise UserError(f"{path}: {keys.num_rows} rows, but the manifest has {manifest.rows}")
    return keys.cast(_KEYS_SCHEMA)


def previous_rows(output: Path, manifest: Manifest, filters: Sequence[Filter]) -> pa.Table:
    """The rows of a complete folder, in the columns that the filters need."""
    keys = read_keys(output, manifest)
    rows = keys.num_rows
    table = keys.select(["row", "key", "phash"])
    for name in ("id", "url"):
        table = table.append_column(name, pa.nulls(rows, pa.string()))
    table = table.select(STAGED_SCHEMA.names)
    table = table.append_column("shard", pa.array([-1] * rows, pa.int64()))
    if not needs_texts(filters):
        return table
    turns = pa.array([], TURNS)
    if rows:
        turns = ShardSet([output], verify=False).columns(["turns"])["turns"]
    return table.append_column("turns", turns)
