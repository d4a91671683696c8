"""Runs a job: plans its work units, downloads them, filters globally, writes the shards.

1. Plan: the filters before the download run over the list in its order; the remaining rows are the
   candidates, in work units of a fixed number of *input* rows.
2. Download: workers process one unit at a time and leave its samples and result on disk.
3. Global filters see all keys of the job in input order: duplicates and the like.
4. The workers write the final shards, one per unit; the manifest is written last.

Every stage first asks the job state what is done, so a job that was killed anywhere resumes there.
No stage depends on the order in which workers finish, so every run writes the same bytes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from etl.cli import UserError
from etl.filters.base import DROPS, Filter, FilteredBatch, StepYield, add_yields, run_filters
from etl.media.gather import MediaOptions
from etl.report.job_report import DROPS_FILE, TIMINGS_FILE, print_summary, write_report
from etl.report.statistics import download_yield, statistics
from etl.runtime import retry
from etl.runtime.clip_filter import score_units
from etl.runtime.executor import Executor, open_executor, prepare
from etl.runtime.global_filters import (
    GlobalResult,
    global_filters,
    previous_rows,
    run_global_filters,
    save_keys,
)
from etl.runtime.job_state import JobState, Plan, make_plan, read_table, write_table
from etl.runtime.options import JobOptions
from etl.runtime.worker import (
    DownloadWorker,
    FinalShardWriter,
    KeptRows,
    WorkerSpec,
    WorkUnit,
)
from etl.runtime.worker_pool import WorkerPool, spare_pandas
from etl.sources.base import Identity, Source
from etl.storage.atomic import atomic_file, write_json
from etl.storage.manifest import Manifest, Shard, read_manifest, write_manifest

_log = logging.getLogger("etl")
_WORKER_CPUS = 0.5  # downloads wait more than they compute


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job over one corpus.

    `filters` run before the download, in order; `identity` defines what a duplicate is.
    `global_filters` run over the whole job after the download, in order; their columns are those of
    `etl.runtime.worker.STAGED_SCHEMA` and the computed scores. If it is None, the options select
    them (`etl.runtime.global_filters.global_filters`).
    """

    name: str
    source: Source
    filters: Sequence[Filter]
    identity: Identity
    options: JobOptions
    media: MediaOptions = field(default_factory=MediaOptions)
    global_filters: Sequence[Filter] | None = None


def run_job(job: Job) -> None:
    """Run a job to its end; resumes an earlier run of the same plan that was killed.

    Raises:
        UserError: the output folder belongs to another job, or the input is damaged.
        KeyboardInterrupt: Ctrl-C; it says what to do to go on.
    """
    spare_pandas()
    try:
        _run_or_resume(job)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command resumes the job") from None


def _run_or_resume(job: Job) -> None:
    plan = make_plan(job.name, job.source.files, job.options.config)
    state = JobState(job.options.output)
    if state.is_complete(plan) and not (job.options.retry_failed or state.work.exists()):
        state.remove_leftovers()
        _log.info("%s: already complete, nothing to do", state.output)
    else:
        with state.lock():
            state.remove_partial_work()
            _resume(job, plan, state)
    print_summary(state.output, read_manifest(state.output), as_json=job.options.json)


def _resume(job: Job, plan: Plan, state: JobState) -> None:
    """Do the remaining work, with the folder locked."""
    prepare(job.options.executor)
    state.remove_worthless(plan)
    if not state.is_complete(plan):  # another run may have completed it meanwhile
        _run(job, plan, state)
    if job.options.retry_failed:
        _retry(job, state)
    if retry.is_unfinished(state):
        _log.warning("%s: --retry-failed was interrupted; repeat it to resume", state.output)
    else:
        state.discard()


def _run(job: Job, plan: Plan, state: JobState) -> None:
    filters = _global_filters(job)
    with _progress() as progress:
        unit_rows = _plan_units(job, plan, state, progress)
        if any(unit_rows):
            with _workers(job, state) as (executor, pool):
                _download(job, state, unit_rows, pool, progress)
                _score(job, state, unit_rows, executor, pool, progress)
                started = time.monotonic()
                result = run_global_filters(state, unit_rows, filters)
                state.add_time("global filters", started, sum(unit_rows))
                shards = _write_shards(state, result, pool, progress)
        else:  # every row was dropped: no need for workers
            result, shards = run_global_filters(state, unit_rows, filters), ()
    _finish(job, plan, state, result, shards)


def _retry(job: Job, state: JobState) -> None:
    """Download rows again that failed for a transient reason; see `etl.runtime.retry`."""
    with _progress() as progress:
        tables = job.source.read(job.options.rows_per_shard)
        batches = (run_filters(table, job.filters) for table in tables)
        unit_rows = retry.plan_units(state, batches, job.options.rows_per_shard)
        if any(unit_rows):
            with _workers(job, state) as (executor, pool):
                _download(job, state, unit_rows, pool, progress)
                _score(job, state, unit_rows, executor, pool, progress)
                filters = _global_filters(job)
                previous = previous_rows(state.output, read_manifest(state.output), filters)
                result = run_global_filters(state, unit_rows, filters, previous=previous)
                shards = _write_shards(state, result, pool, progress)
            retry.finish(state, result, shards)


@contextlib.contextmanager
def _workers(job: Job, state: JobState) -> Iterator[tuple[Executor, WorkerPool]]:
    """The executor, and the pool of workers that download and write."""
    with open_executor(job.options.executor, log=state.worker_log.resolve()) as executor:
        size = job.options.workers or executor.cpus
        with executor.pool(size, cpus=_WORKER_CPUS) as pool:
            yield executor, pool


def _progress() -> Progress:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn())


def _plan_units(job: Job, plan: Plan, state: JobState, progress: Progress) -> list[int]:
    """Write the candidates of every unit unless an earlier run did; returns their row counts."""
    saved = state.saved_plan()
    if saved:
        return saved["unit_rows"]
    task = progress.add_task("plan", total=None)
    started = time.monotonic()
    units: list[tuple[int, FilteredBatch]] = []
    try:
        with atomic_file(state.candidates_path) as stream, contextlib.ExitStack() as stack:
            writer = None
            for table in job.source.read(job.options.rows_per_shard):
                batch = run_filters(table, job.filters)
                schema = batch.kept.schema
                writer = writer or stack.enter_context(pa.ipc.new_file(stream, schema))
                writer.write_batch(_one_batch(batch.kept))
                units.append((table.num_rows, batch))
                progress.update(task, advance=table.num_rows)
    except BaseException:
        state.discard()  # an unreadable list leaves nothing behind
        raise
    input_rows = sum(count for count, _ in units)
    progress.update(task, total=input_rows)
    batches = [batch for _, batch in units]
    drops = [DROPS.empty_table(), *(batch.drops for batch in batches)]  # a list may have no rows
    write_table(state.plan_drops_path, pa.concat_tables(drops))
    unit_rows = [batch.kept.num_rows for batch in batches]
    state.save_plan(
        plan,
        unit_rows=unit_rows,
        input_rows=input_rows,
        yields=add_yields([batch.yields for batch in batches]),
    )
    state.add_time("plan", started, input_rows)
    return unit_rows


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _download(
    job: Job, state: JobState, unit_rows: Sequence[int], pool: WorkerPool, progress: Progress
) -> None:
    """Download every unit that has no result yet."""
    todo = [
        number for number, rows in enumerate(unit_rows) if rows and not state.unit_result(number)
    ]
    task = progress.add_task("download", total=sum(unit_rows))
    progress.update(task, completed=sum(unit_rows) - sum(unit_rows[number] for number in todo))
    if not todo:
        return
    started = time.monotonic()
    options = job.options
    spec = WorkerSpec(
        output=state.output.resolve(),
        source=job.name,
        identity=job.identity,
        backend=options.backend,
        fetch=options.fetch,
        image=options.image,
        media=dataclasses.replace(job.media, image_size=options.image_size),
        stop_on_dns_outage=not options.retry_failed,  # rows that failed before may well fail again
    )
    build = functools.partial(DownloadWorker, spec)
    units = [WorkUnit(number=number) for number in todo]
    for rows in pool.map_unordered("download", build, units, WorkUnit.after_death):
        progress.update(task, advance=rows)
    state.add_time("download", started, sum(unit_rows[number] for number in todo))


def _score(
    job: Job,
    state: JobState,
    unit_rows: Sequence[int],
    executor: Executor,
    pool: WorkerPool,
    progress: Progress,
) -> None:
    """Score the downloaded pairs with CLIP, if the job has a model."""
    if job.options.clip:
        pool.stop_idle()  # the model needs their CPUs
        score_units(state, unit_rows, job.options.clip, executor=executor, progress=progress)


def _global_filters(job: Job) -> Sequence[Filter]:
    if job.global_filters is None:
        return global_filters(job.options, job.identity)
    return job.global_filters


def _write_shards(
    state: JobState, result: GlobalResult, pool: WorkerPool, progress: Progress
) -> tuple[Shard, ...]:
    """Write the final shard of every unit that keeps rows; returns them in the units' order."""
    kept = {number: len(rows) for number, rows in result.rows.items()}
    nonempty = [number for number, rows in kept.items() if rows]
    todo = [number for number in nonempty if not state.final_shard(number)]
    task = progress.add_task("write", total=sum(kept.values()))
    progress.update(task, completed=sum(kept.values()) - sum(kept[number] for number in todo))
    if todo:
        started = time.monotonic()
        items = [KeptRows(unit=number, rows=result.rows[number]) for number in todo]
        build = functools.partial(FinalShardWriter, state.output.resolve())
        for rows in pool.map_unordered("write", build, items):
            progress.update(task, advance=rows)
        state.add_time("write", started, sum(kept[number] for number in todo))
    shards = [state.final_shard(number) for number in nonempty]
    return tuple(shard for shard in shards if shard)


def _finish(
    job: Job, plan: Plan, state: JobState, result: GlobalResult, shards: tuple[Shard, ...]
) -> None:
    """Write the keys, the drops, the report and, last, the manifest."""
    saved = state.saved_plan() or {}
    save_keys(state.output, [result.keys])
    unit_results = [found for number in result.rows if (found := state.unit_result(number))]
    yields = [
        [StepYield(**entry) for entry in saved["yields"]],
        *(found.yields for found in unit_results),
        result.yields,
    ]
    drops = pa.concat_tables(
        [
            read_table(state.plan_drops_path),
            *(read_table(state.drops_path(number)) for number in result.rows),
            result.drops,
        ]
    ).sort_by("row")
    with atomic_file(state.output / DROPS_FILE) as stream:
        pq.write_table(drops, stream)
    manifest = Manifest(
        job=job.name,
        plan=asdict(plan),
        input_rows=saved["input_rows"],
        rows=sum(shard.rows for shard in shards),
        drops=dict(collections.Counter(drops["reason"].to_pylist()).most_common()),
        shards=shards,
        details={
            "yields": [asdict(entry) for entry in add_yields(yields)],
            "statistics": statistics(state.output, shards, drops),
        },
    )
    write_json(state.output / TIMINGS_FILE, state.timings())
    write_report(state.output, manifest)
    _require_yield(job.options, manifest)
    write_manifest(state.output, manifest)


def _require_yield(options: JobOptions, manifest: Manifest) -> None:
    """Fail if too few downloads succeeded: the files are written, but no manifest declares them."""
    success = download_yield(manifest)
    if success is not None and success < options.min_yield:
        reason = max(manifest.drops, key=lambda one: manifest.drops[one])
        raise UserError(
            f"--min-yield {options.min_yield}: only {success:.1%} of downloads succeeded; most"
            f" frequent reason: {reason}; see {options.output / 'report.html'}, or repeat the"
            " command with a lower --min-yield"
        )
