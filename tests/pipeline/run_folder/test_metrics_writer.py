"""The metrics hold every step once, even after a crash and a resume."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.config.trainer_state import TrainerState
from pipeline.run_folder.metrics_writer import (
    MetricsWriter,
    read_cut_samples,
    read_metrics,
    read_validations,
)
from tests.disks import make_room, small_disk


def test_rewinding_removes_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, rank=0)
    for step in range(1, 6):
        writer.step({"step": step, "loss": 1 / step})
        writer.bad(step, [{"id": f"s{step}"}])
        writer.cut(step, [{"id": f"long{step}"}])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # as a killed run leaves it
    writer.rewind(3)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    lines = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["s1", "s2", "s3"]
    assert [one["id"] for one in read_cut_samples(tmp_path)] == ["long1", "long2", "long3"]


class Recorder:
    """A logger that remembers what it gets."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, Mapping[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))

    def close(self) -> None:
        pass


def test_validations_are_rewound_logged_and_read_by_their_data(tmp_path: Path) -> None:
    writer, recorder = MetricsWriter(tmp_path, rank=0), Recorder()
    writer.log_to([recorder])
    for step, data in ((0, "a"), (2, "b"), (4, "b"), (6, "b")):
        writer.validation({"step": step, "data": data, "blind": {"loss": 2.0}})
    writer.rewind(4)
    assert [one["step"] for one in read_validations(tmp_path)] == [2, 4]
    assert [one["step"] for one in read_validations(tmp_path, "a")] == [0]
    assert recorder.logged[1] == (2, {"validation/step": 2, "validation/blind/loss": 2.0})


def test_only_rank_0_writes(tmp_path: Path) -> None:
    MetricsWriter(tmp_path, rank=1).step({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, rank=0)
    writer.check_bad(TrainerState(samples=100, bad=10), 0.01)
    with pytest.raises(UserError, match="11 of 111 samples cannot be used"):
        writer.check_bad(TrainerState(samples=100, bad=11), 0.01)
    writer.check_bad(TrainerState(samples=9900, bad=100), 0.01)
    for name in ("first", "second"):
        writer.bad(1, [{"id": name, "reason": f"{name} is broken"}])
    with pytest.raises(
        UserError, match=r"0\.01; first: first is broken; .*bad_samples.jsonl names"
    ):
        writer.check_bad(TrainerState(samples=100, bad=11), 0.01)


def test_lines_that_a_full_disk_rejects_are_written_with_the_next_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "run", 1 << 16) as run:
        writer = MetricsWriter(run, rank=0)
        writer.step({"step": 1})
        other = run / "other"
        with contextlib.suppress(OSError), other.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        for step in range(2, 2000):  # more than what is left of the file's last page
            writer.step({"step": step, "text": "x" * 50})
        assert len(read_metrics(run)) < 1000
        assert caplog.text.count("No space left on device; its lines are kept") == 1
        with pytest.raises(UserError, match=r"metrics.jsonl: no room for the last lines"):
            writer.close()
        make_room(run, 1 << 20)
        writer.close()
        assert [entry["step"] for entry in read_metrics(run)] == list(range(1, 2000))
