"""What `--retry-failed` asks for again, and how far a retry came that was cut off."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.filters.base import DROPS, FilteredBatch
from etl.report.report import DROPS_FILE
from etl.runtime.job_state import JobState, Plan
from etl.runtime.retry import plan_ranges, unfinished
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
    """Of a complete job with two samples and a drop for each of `REASONS`."""
    output = tmp_path / "out"
    caption_shards(output, 2)
    drops = [
        {"row": row, "id": str(row), "url": "u", "step": step, "reason": reason, "detail": None}
        for row, (step, reason) in enumerate(REASONS, 2)
    ]
    pq.write_table(pa.Table.from_pylist(drops, schema=DROPS), output / DROPS_FILE)
    found = JobState(output)
    found.work.mkdir()
    finished(found, retries=[])
    return found


def finished(state: JobState, *, retries: list[dict]) -> None:
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


def outcomes() -> list[FilteredBatch]:
    tables = [pa.table({"row": range(start, start + 3)}) for start in (0, 3, 6)]
    return [FilteredBatch(kept=table, drops=DROPS.empty_table(), yields=()) for table in tables]


def test_only_transient_failures_of_downloads_are_planned(state: JobState) -> None:
    assert not unfinished(state)
    assert plan_ranges(state, outcomes(), 2) == [0, 2, 1]  # shard 0 is there already
    with pa.ipc.open_file(state.candidates_path) as reader:
        batches = [reader.get_batch(number)["row"].to_pylist() for number in range(3)]
    assert batches == [[], [2, 4], [7]]
    assert unfinished(state)
    assert plan_ranges(state, [], 2) == [0, 2, 1]  # goes on with what was planned


def test_a_retry_whose_result_is_in_the_manifest_is_over(state: JobState) -> None:
    plan_ranges(state, outcomes(), 2)
    finished(state, retries=[{"asked": 3, "kept": 0}])
    assert not unfinished(state)
    assert plan_ranges(state, outcomes(), 2) == []


def test_another_plan_is_no_retry(state: JobState) -> None:
    plan = Plan(job="t", inputs=(), config={})
    state.save_plan(plan, rows=[1], input_rows=1, yields=[])
    assert not unfinished(state)
