"""Which rows `--retry-failed` downloads again, and whether a retry was finished."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.filters.base import DROPS, FilteredBatch
from etl.report.job_report import DROPS_FILE
from etl.runtime.job_state import JobState, Plan
from etl.runtime.retry import is_unfinished, plan_units
from etl.storage.manifest import Manifest, read_manifest, write_manifest
from tests.worlds import caption_shards

REASONS = [
    ("download", "timeout"),
    ("download", "http_404"),
    ("download", "http_503"),
    ("decode", "truncated"),
    ("download", "opted_out"),
    ("download", "dns_temporary"),
    ("url dedup", "duplicate_url"),
]


@pytest.fixture
def state(tmp_path: Path) -> JobState:
    """State of a complete job with two samples and a drop for each of `REASONS`."""
    output = tmp_path / "out"
    caption_shards(output, 2)
    drops = [
        {"row": row, "id": str(row), "url": "u", "step": step, "reason": reason, "detail": None}
        for row, (step, reason) in enumerate(REASONS, 2)
    ]
    pq.write_table(pa.Table.from_pylist(drops, schema=DROPS), output / DROPS_FILE)
    found = JobState(output)
    found.work.mkdir()
    finish(found, retries=[])
    return found


def finish(state: JobState, *, retries: list[dict]) -> None:
    shards = read_manifest(state.output).shards
    drops = dict.fromkeys((reason for _, reason in REASONS), 1)
    details = {"yields": [], "retries": retries}
    rows = 2 + len(REASONS)
    write_manifest(
        state.output,
        Manifest(
            job="t", plan={}, input_rows=rows, rows=2, drops=drops, shards=shards, details=details
        ),
    )


def batches() -> list[FilteredBatch]:
    tables = [pa.table({"row": range(start, start + 3)}) for start in (0, 3, 6)]
    return [FilteredBatch(kept=table, drops=DROPS.empty_table(), yields=()) for table in tables]


def test_only_transient_failures_of_downloads_are_planned(state: JobState) -> None:
    assert not is_unfinished(state)
    assert plan_units(state, batches(), 2) == [0, 2, 1]  # shard 0 exists already
    with pa.ipc.open_file(state.candidates_path) as reader:
        rows = [reader.get_batch(number)["row"].to_pylist() for number in range(3)]
    assert rows == [[], [2, 4], [7]]
    assert is_unfinished(state)
    assert plan_units(state, [], 2) == [0, 2, 1]  # resumes the saved plan


def test_a_retry_is_finished_once_the_manifest_has_its_result(state: JobState) -> None:
    plan_units(state, batches(), 2)
    finish(state, retries=[{"retried": 3, "recovered": 0}])
    assert not is_unfinished(state)
    assert plan_units(state, batches(), 2) == []


def test_a_job_plan_is_not_a_retry(state: JobState) -> None:
    plan = Plan(job="t", inputs=(), config={})
    state.save_plan(plan, unit_rows=[1], input_rows=1, yields=[])
    assert not is_unfinished(state)
