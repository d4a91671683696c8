"""What a run folder tells of its starts, also of those that were killed."""

import json
import logging
import os
from pathlib import Path

import pytest

from pipeline.run_folder import starts
from pipeline.run_folder.starts import read_starts, record_end, record_start, recording_failure


def train(run: Path, steps: range) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"step": step}) + "\n" for step in steps)


def start(run: Path, step: int = 0) -> None:
    record_start(run, ranks=2, from_step=step, parameters=(1, 2), lineage={})


def facts(start: dict) -> tuple:
    return start["from_step"], start["to_step"], start["outcome"]


def test_a_killed_start_ends_where_the_next_one_finds_it(tmp_path: Path) -> None:
    start(tmp_path)
    train(tmp_path, range(1, 8))
    [killed] = read_starts(tmp_path)
    assert facts(killed) == (0, None, "running, or killed")
    os.utime(tmp_path / "metrics.jsonl", (1234, 1234))
    start(tmp_path, 5)
    train(tmp_path, range(6, 11))
    record_end(tmp_path, "complete")
    killed, last = read_starts(tmp_path)
    assert facts(killed) == (0, 7, "killed")
    assert killed["ended"] == 1234
    assert facts(last) == (5, 10, "complete")
    assert last["ended"] >= last["started"]


def test_a_start_without_a_step_has_neither_steps_nor_time(tmp_path: Path) -> None:
    train(tmp_path, range(1, 6))
    start(tmp_path, 5)
    start(tmp_path, 5)
    first, _ = read_starts(tmp_path)
    assert facts(first) == (5, None, "ended before a step was complete")
    assert first["ended"] is None


def test_a_failure_is_the_end_and_passes(tmp_path: Path) -> None:
    start(tmp_path)
    for rank in (1, 0):
        with pytest.raises(ValueError, match="no such"), recording_failure(tmp_path, rank):
            raise ValueError("no such thing")
    assert [one["outcome"] for one in read_starts(tmp_path)] == ["ValueError: no such thing"]
    assert (tmp_path / "starts.jsonl").read_text().count("\n") == 2  # rank 0's alone


def test_the_code_is_the_commit_else_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "REPOSITORY", tmp_path)
    start(tmp_path)
    (tmp_path / ".git").write_text("not a checkout")
    start(tmp_path)
    assert [one["code"].partition(" ")[0] for one in read_starts(tmp_path)] == ["version"] * 2


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        record_end(tmp_path / "gone", "complete")
    assert "starts.jsonl: No such file" in caplog.text
