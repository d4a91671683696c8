"""`--retry-failed`: asks again for what failed to download and might not now, into added shards.

The job's shards stay as they are. The rows whose reason is transient are planned anew, as ranges
after the last one, and go the same way; then the drops and the manifest are written again. Nothing
before the manifest counts, so a retry that is killed goes on when it is given again.
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
from etl.filters.base import Outcome, StepYield
from etl.report.report import DROPS_FILE, write_report
from etl.report.statistics import statistics
from etl.runtime.global_filters import Late, read_keys, save_keys
from etl.runtime.job_state import Ledger, Plan, read_table
from etl.storage.atomic import atomic_file
from etl.storage.shards import Shard, read_manifest, write_manifest

_log = logging.getLogger("etl")


def unfinished(ledger: Ledger) -> bool:
    """Whether a retry was begun whose result is not in the manifest."""
    planned = ledger.planned()
    if not planned:
        return False
    done = len(read_manifest(ledger.output).details.get("retries", ()))
    return planned["plan"]["config"].get("retry", 0) > done


def plan_ranges(ledger: Ledger, outcomes: Iterable[Outcome], rows_per_shard: int) -> list[int]:
    """Write the candidates that are to be asked for again, unless that is done.

    Args:
        ledger: of a complete job.
        outcomes: of the job's whole list, as its first plan made them.
        rows_per_shard: rows of one range.

    Returns:
        How many rows each range has; those that the job had before have none now.
    """
    planned = ledger.planned()
    if planned and "retry" in planned["plan"]["config"]:
        return planned["rows"] if unfinished(ledger) else []
    ledger.empty()  # of a job that was killed between its manifest and its end
    wanted = _transient(pq.read_table(ledger.output / DROPS_FILE))
    if not wanted.num_rows:
        _log.info("%s: nothing failed that might not now", ledger.output)
        return []
    manifest = read_manifest(ledger.output)
    done = 1 + max((_number(shard) for shard in manifest.shards), default=-1)
    rows = [0] * done
    with atomic_file(ledger.candidates) as stream:
        writer = None
        for batch in _batches(outcomes, wanted["row"], rows_per_shard):
            if writer is None:
                writer = pa.ipc.new_file(stream, batch.schema)
                for _ in range(done):
                    writer.write_batch(batch.slice(0, 0))
            writer.write_batch(batch)
            rows.append(batch.num_rows)
        if writer:
            writer.close()
    config = {"retry": len(manifest.details.get("retries", ())) + 1}
    plan = Plan(job=manifest.job, inputs=(), config=config)
    ledger.save_plan(plan, rows=rows, input_rows=wanted.num_rows, yields=[])
    return rows


def _transient(drops: pa.Table) -> pa.Table:
    again = pc.and_(
        pc.equal(drops["step"], "download"),
        pc.is_in(drops["reason"], pa.array(sorted(TRANSIENT))),
    )
    return drops.filter(again)


def _number(shard: Shard) -> int:
    return int(Path(shard.path).stem.rpartition("-")[2])


def _batches(
    outcomes: Iterable[Outcome], wanted: pa.ChunkedArray, rows: int
) -> Iterator[pa.RecordBatch]:
    pending: list[pa.Table] = []
    wanted = wanted.combine_chunks()
    for outcome in outcomes:
        pending.append(outcome.kept.filter(pc.is_in(outcome.kept["row"], wanted)))
        while sum(part.num_rows for part in pending) >= rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, rows).combine_chunks().to_batches()[0]
            pending = [joined.slice(rows)]
    left = pa.concat_tables(pending)
    if left.num_rows:
        yield left.combine_chunks().to_batches()[0]


def finish(ledger: Ledger, late: Late, shards: Sequence[Shard]) -> None:
    """Add what was recovered to the job's output: keys, drops, report and, last, the manifest."""
    planned: dict[str, Any] = ledger.planned() or {}
    before = read_manifest(ledger.output)
    batches = [ledger.range_candidates(number) for number in late.rows]
    asked = pa.concat_arrays([batch["row"].combine_chunks() for batch in batches])
    save_keys(ledger.output, [read_keys(ledger.output, before), late.keys])
    old = pq.read_table(ledger.output / DROPS_FILE)
    drops = pa.concat_tables(
        [
            old.filter(pc.invert(pc.is_in(old["row"], asked))),
            *(read_table(ledger.drops_path(number)) for number in late.rows),
            late.drops,
        ]
    ).sort_by("row")
    with atomic_file(ledger.output / DROPS_FILE) as stream:
        pq.write_table(drops, stream)
    recovered = sum(shard.rows for shard in shards)
    number = planned["plan"]["config"]["retry"]
    told = StepYield(step=f"retry {number}", rows_in=len(asked), rows_out=recovered)
    details = dict(before.details)
    details["yields"] = [*details.get("yields", ()), dataclasses.asdict(told)]
    details["retries"] = [*details.get("retries", ()), {"asked": len(asked), "kept": recovered}]
    shards = (*before.shards, *shards)
    details["statistics"] = statistics(ledger.output, shards, drops)
    manifest = dataclasses.replace(
        before,
        rows=before.rows + recovered,
        drops=dict(collections.Counter(drops["reason"].to_pylist()).most_common()),
        shards=shards,
        details=details,
    )
    write_report(ledger.output, manifest)
    write_manifest(ledger.output, manifest)
