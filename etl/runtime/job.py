"""Run a job: plan its ranges, download them on Ray, decide duplicates, write the shards.

1. The plan: text steps and URL deduplication run over the list in its order; what is left are the
   candidates, in ranges of a fixed number of *input* rows.
2. Ray actors do a range each at a time, and leave samples and a receipt.
3. Steps that look at the whole job decide on its keys, in input order: duplicates and the like.
4. They write the final shards, one per range; then comes the manifest.

Every stage asks the ledger what is already done, so a job that is killed anywhere goes on there. No
stage depends on the order in which workers end, so the shards are the same bytes in every run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from etl.cli import UserError
from etl.filters.base import Outcome, Step, StepYield, add_yields, run_steps
from etl.media.gather import MediaPlan
from etl.report.report import DROPS_FILE, TIMINGS_FILE, print_summary, write_report
from etl.report.statistics import download_yield, statistics
from etl.runtime import global_filters as after
from etl.runtime import retry
from etl.runtime.clip_filter import judge
from etl.runtime.executor import Crew
from etl.runtime.global_filters import Late
from etl.runtime.job_state import Ledger, Plan, make_plan, read_table, write_table
from etl.runtime.options import JobOptions
from etl.runtime.ray_cluster import ray_cluster
from etl.runtime.worker import Identity, RangeWorker, WorkerSpec, WriteFinal
from etl.sources.base import Source
from etl.storage.atomic import atomic_file, write_json
from etl.storage.shards import Manifest, Shard, read_manifest, write_manifest

_log = logging.getLogger("etl")
_WORKER_CPUS = 0.5  # downloads wait more than they compute


@dataclass(frozen=True, kw_only=True)
class Job:
    """One corpus' way to shards.

    `before` are the steps before the download, in order; `identity` says what a duplicate is.
    `after` are the steps over the whole job after the download, in order; the columns that they
    judge are those of `etl.runtime.worker.KEPT` and scores that were computed. None are those that
    the options ask for (`etl.runtime.global_filters.steps_after`).
    """

    name: str
    source: Source
    before: Sequence[Step]
    identity: Identity
    options: JobOptions
    media: MediaPlan = field(default_factory=MediaPlan)
    after: Sequence[Step] | None = None


def run_job(job: Job) -> None:
    """Run a job to its end, or from where an earlier run of the same plan was killed.

    Raises:
        UserError: the output folder holds another job's work, or the input is damaged.
    """
    plan = make_plan(job.name, job.source.files, job.options.config)
    ledger = Ledger(job.options.output)
    if ledger.complete(plan) and not (job.options.retry_failed or ledger.work.exists()):
        ledger.sweep()
        _log.info("%s: already complete, nothing to do", ledger.output)
    else:
        with ledger.lock():
            ledger.clear()
            _go_on(job, plan, ledger)
    print_summary(ledger.output, read_manifest(ledger.output), as_json=job.options.json)


def _go_on(job: Job, plan: Plan, ledger: Ledger) -> None:
    """Do what is left to do, while nobody else is at it."""
    if not ledger.complete(plan):  # a run that ended since may have completed it
        _work(job, plan, ledger)
    if job.options.retry_failed:
        _retry(job, ledger)
    if retry.unfinished(ledger):
        _log.warning("%s: --retry-failed was cut off; give it again to go on", ledger.output)
    else:
        ledger.discard()


def _work(job: Job, plan: Plan, ledger: Ledger) -> None:
    with _progress() as progress:
        ranges = _plan_ranges(job, plan, ledger, progress)
        with ray_cluster() as cpus, _crew(job, cpus) as crew:
            _download(job, ledger, ranges, crew, progress)
            _judge(job, ledger, ranges, cpus, crew, progress)
            begun = time.monotonic()
            late = after.settle(ledger, ranges, _steps_after(job))
            ledger.add_time("steps after", begun, sum(ranges))
            shards = _write_shards(ledger, late, crew, progress)
    _finish(job, plan, ledger, late, shards)


def _retry(job: Job, ledger: Ledger) -> None:
    """Ask again for what failed and might not now; see `etl.runtime.retry`."""
    with _progress() as progress:
        tables = job.source.read(job.options.rows_per_shard)
        outcomes = (run_steps(table, job.before) for table in tables)
        ranges = retry.plan_ranges(ledger, outcomes, job.options.rows_per_shard)
        if any(ranges):
            with ray_cluster() as cpus, _crew(job, cpus) as crew:
                _download(job, ledger, ranges, crew, progress)
                _judge(job, ledger, ranges, cpus, crew, progress)
                steps = _steps_after(job)
                before = after.kept_before(ledger.output, read_manifest(ledger.output), steps)
                late = after.settle(ledger, ranges, steps, before=before)
                shards = _write_shards(ledger, late, crew, progress)
            retry.finish(ledger, late, shards)


def _crew(job: Job, cpus: int) -> Crew:
    return Crew(job.options.workers or cpus, cpus=_WORKER_CPUS)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn())


def _plan_ranges(job: Job, plan: Plan, ledger: Ledger, progress: Progress) -> list[int]:
    """Write the candidates of every range, unless that is done; the number of them in each."""
    planned = ledger.planned()
    if planned:
        return planned["rows"]
    task = progress.add_task("plan", total=None)
    begun = time.monotonic()
    parts: list[tuple[int, Outcome]] = []
    try:
        with atomic_file(ledger.candidates) as stream, contextlib.ExitStack() as stack:
            writer = None
            for table in job.source.read(job.options.rows_per_shard):
                outcome = run_steps(table, job.before)
                schema = outcome.kept.schema
                writer = writer or stack.enter_context(pa.ipc.new_file(stream, schema))
                writer.write_batch(_one_batch(outcome.kept))
                parts.append((table.num_rows, outcome))
                progress.update(task, advance=table.num_rows)
    except BaseException:
        ledger.discard()  # nothing half-written is left of a list that cannot be read
        raise
    input_rows = sum(count for count, _ in parts)
    progress.update(task, total=input_rows)
    outcomes = [outcome for _, outcome in parts]
    write_table(ledger.plan_drops, pa.concat_tables(outcome.drops for outcome in outcomes))
    rows = [outcome.kept.num_rows for outcome in outcomes]
    ledger.save_plan(
        plan,
        rows=rows,
        input_rows=input_rows,
        yields=add_yields([outcome.yields for outcome in outcomes]),
    )
    ledger.add_time("plan", begun, input_rows)
    return rows


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _download(
    job: Job, ledger: Ledger, ranges: Sequence[int], crew: Crew, progress: Progress
) -> None:
    """Have workers do every range that has no receipt yet."""
    todo = [number for number, rows in enumerate(ranges) if rows and not ledger.receipt(number)]
    task = progress.add_task("download", total=sum(ranges))
    progress.update(task, completed=sum(ranges) - sum(ranges[number] for number in todo))
    if not todo:
        return
    begun = time.monotonic()
    options = job.options
    spec = WorkerSpec(
        output=ledger.output.resolve(),
        source=job.name,
        identity=job.identity,
        backend=options.backend,
        fetch=options.fetch,
        image=options.image,
        media=dataclasses.replace(job.media, size=options.image_size),
        stop_on_dns=not options.retry_failed,  # what failed before may well fail again
    )
    items = [pa.table({"range": [number]}) for number in todo]
    for told in crew.each("download", functools.partial(RangeWorker, spec), items):
        (row,) = told.to_pylist()
        if row["trouble"]:
            raise UserError(f"{row['trouble']}; the same command goes on from here")
        progress.update(task, advance=row["rows"])
    ledger.add_time("download", begun, sum(ranges[number] for number in todo))


def _judge(
    job: Job, ledger: Ledger, ranges: Sequence[int], cpus: int, crew: Crew, progress: Progress
) -> None:
    """Have a model judge what was downloaded, if the job has one."""
    if job.options.clip:
        crew.dismiss()  # the model needs its CPUs
        judge(ledger, ranges, job.options.clip, cpus=cpus, progress=progress)


def _steps_after(job: Job) -> Sequence[Step]:
    return after.steps_after(job.options, job.identity) if job.after is None else job.after


def _write_shards(ledger: Ledger, late: Late, crew: Crew, progress: Progress) -> tuple[Shard, ...]:
    """Have workers write the final shard of every range that keeps rows; in the ranges' order."""
    kept = {number: len(rows) for number, rows in late.rows.items()}
    wanted = [number for number, rows in kept.items() if rows]
    todo = [number for number in wanted if not ledger.written(number)]
    task = progress.add_task("write", total=sum(kept.values()))
    progress.update(task, completed=sum(kept.values()) - sum(kept[number] for number in todo))
    if todo:
        begun = time.monotonic()
        items = [pa.table({"range": [number], "keep": [late.rows[number]]}) for number in todo]
        make = functools.partial(WriteFinal, ledger.output.resolve())
        for told in crew.each("write", make, items):
            (row,) = told.to_pylist()
            progress.update(task, advance=row["rows"])
        ledger.add_time("write", begun, sum(kept[number] for number in todo))
    shards = [ledger.written(number) for number in wanted]
    return tuple(shard for shard in shards if shard)


def _finish(job: Job, plan: Plan, ledger: Ledger, late: Late, shards: tuple[Shard, ...]) -> None:
    """Write the keys, the drops, the report and, last, the manifest."""
    planned = ledger.planned() or {}
    after.save_keys(ledger.output, [late.keys])
    receipts = [receipt for number in late.rows if (receipt := ledger.receipt(number))]
    yields = [
        [StepYield(**found) for found in planned["yields"]],
        *(receipt.yields for receipt in receipts),
        late.yields,
    ]
    drops = pa.concat_tables(
        [
            read_table(ledger.plan_drops),
            *(read_table(ledger.drops_path(number)) for number in late.rows),
            late.drops,
        ]
    ).sort_by("row")
    with atomic_file(ledger.output / DROPS_FILE) as stream:
        pq.write_table(drops, stream)
    manifest = Manifest(
        job=job.name,
        plan=asdict(plan),
        input_rows=planned["input_rows"],
        rows=sum(shard.rows for shard in shards),
        drops=dict(collections.Counter(drops["reason"].to_pylist()).most_common()),
        shards=shards,
        details={
            "yields": [asdict(found) for found in add_yields(yields)],
            "statistics": statistics(ledger.output, shards, drops),
        },
    )
    write_json(ledger.output / TIMINGS_FILE, ledger.timings())
    write_report(ledger.output, manifest)
    _require_yield(job.options, manifest)
    write_manifest(ledger.output, manifest)


def _require_yield(options: JobOptions, manifest: Manifest) -> None:
    """Fail if too few downloads succeeded: all is written down, but not declared complete."""
    found = download_yield(manifest)
    if found is not None and found < options.min_yield:
        worst = max(manifest.drops, key=lambda reason: manifest.drops[reason])
        raise UserError(
            f"--min-yield {options.min_yield}: {found:.1%} of downloads succeeded, mostly for"
            f" {worst}; see {options.output / 'report.html'}, or end it with a lower floor"
        )
