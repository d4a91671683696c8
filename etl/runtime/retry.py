"""`--retry-failed`: downloads rows again that failed for a transient reason, into added shards.

The existing shards stay as they are. The rows with a transient drop reason are planned as further
work units after the last one, and processed like any other; then the drops and the manifest are
written again. Nothing counts before the manifest, so a killed retry resumes when it is repeated.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.download.errors import TRANSIENT
from etl.filters.base import FilteredBatch, StepYield
from etl.report.job_report import DROPS_FILE, write_report
from etl.report.statistics import statistics
from etl.runtime.global_filters import GlobalResult, read_keys, save_keys
from etl.runtime.job_state import JobState, Plan, read_table
from etl.storage.atomic import atomic_file
from etl.storage.manifest import Shard, read_manifest, write_manifest

_log = logging.getLogger("etl")


def is_unfinished(state: JobState) -> bool:
    """Whether a retry was started whose result is not in the manifest."""
    saved = state.saved_plan()
    if not saved:
        return False
    finished = len(read_manifest(state.output).details.get("retries", ()))
    return saved["plan"]["config"].get("retry", 0) > finished


def plan_units(state: JobState, batches: Iterable[FilteredBatch], rows_per_shard: int) -> list[int]:
    """Write the candidates of the retry unless an earlier run did.

    Args:
        state: of a complete job.
        batches: the job's whole list, filtered as in the first run.
        rows_per_shard: rows of one unit.

    Returns:
        The number of rows in each unit; 0 for the units of earlier runs.
    """
    saved = state.saved_plan()
    if saved and "retry" in saved["plan"]["config"]:
        return saved["unit_rows"] if is_unfinished(state) else []
    state.reset()  # of a job that was killed between its manifest and its end
    drops = _transient(pq.read_table(state.output / DROPS_FILE))
    if not drops.num_rows:
        _log.info("%s: no row failed for a transient reason; nothing to retry", state.output)
        return []
    manifest = read_manifest(state.output)
    existing = 1 + max((_number(shard) for shard in manifest.shards), default=-1)
    unit_rows = [0] * existing
    with atomic_file(state.candidates_path) as stream:
        writer = None
        for batch in _batches(batches, drops["row"], rows_per_shard):
            if writer is None:
                writer = pa.ipc.new_file(stream, batch.schema)
                for _ in range(existing):
                    writer.write_batch(batch.slice(0, 0))
            writer.write_batch(batch)
            unit_rows.append(batch.num_rows)
        if writer:
            writer.close()
    config = {"retry": len(manifest.details.get("retries", ())) + 1}
    plan = Plan(job=manifest.job, inputs=(), config=config)
    state.save_plan(plan, unit_rows=unit_rows, input_rows=drops.num_rows, yields=[])
    return unit_rows


def _transient(drops: pa.Table) -> pa.Table:
    transient = pc.and_(
        pc.equal(drops["step"], "download"),
        pc.is_in(drops["reason"], pa.array(sorted(TRANSIENT))),
    )
    return drops.filter(transient)


def _number(shard: Shard) -> int:
    return int(Path(shard.path).stem.rpartition("-")[2])


def _batches(
    filtered: Iterable[FilteredBatch], selected: pa.ChunkedArray, rows: int
) -> Iterator[pa.RecordBatch]:
    pending: list[pa.Table] = []
    selected = selected.combine_chunks()
    for batch in filtered:
        pending.append(batch.kept.filter(pc.is_in(batch.kept["row"], selected)))
        while sum(table.num_rows for table in pending) >= rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, rows).combine_chunks().to_batches()[0]
            pending = [joined.slice(rows)]
    rest = pa.concat_tables(pending)
    if rest.num_rows:
        yield rest.combine_chunks().to_batches()[0]


def finish(state: JobState, result: GlobalResult, shards: Sequence[Shard]) -> None:
    """Add the recovered rows to the job's output: keys, drops, report and, last, the manifest."""
    saved: dict[str, Any] = state.saved_plan() or {}
    before = read_manifest(state.output)
    candidates = [state.unit_candidates(number) for number in result.rows]
    retried = pa.concat_arrays([table["row"].combine_chunks() for table in candidates])
    save_keys(state.output, [read_keys(state.output, before), result.keys])
    old = pq.read_table(state.output / DROPS_FILE)
    drops = pa.concat_tables(
        [
            old.filter(pc.invert(pc.is_in(old["row"], retried))),
            *(read_table(state.drops_path(number)) for number in result.rows),
            result.drops,
        ]
    ).sort_by("row")
    with atomic_file(state.output / DROPS_FILE) as stream:
        pq.write_table(drops, stream)
    recovered = sum(shard.rows for shard in shards)
    number = saved["plan"]["config"]["retry"]
    counts = StepYield(step=f"retry {number}", rows_in=len(retried), rows_out=recovered)
    details = dict(before.details)
    details["yields"] = [*details.get("yields", ()), dataclasses.asdict(counts)]
    details["retries"] = [
        *details.get("retries", ()),
        {"retried": len(retried), "recovered": recovered},
    ]
    shards = (*before.shards, *shards)
    details["statistics"] = statistics(state.output, shards, drops)
    manifest = dataclasses.replace(
        before,
        rows=before.rows + recovered,
        drops=dict(collections.Counter(drops["reason"].to_pylist()).most_common()),
        shards=shards,
        details=details,
    )
    write_report(state.output, manifest)
    write_manifest(state.output, manifest)
