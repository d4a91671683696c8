"""A run's records hold every step once, also after a crash and a resume."""

import contextlib
import json
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.config.trainer_state import TrainerState
from pipeline.run_folder.records import MetricsWriter, read_metrics
from tests.disks import make_room, small_disk


def test_rewinding_forgets_what_lies_past_the_checkpoint(tmp_path: Path) -> None:
    records = MetricsWriter(tmp_path, rank=0)
    for step in range(1, 6):
        records.step({"step": step, "loss": 1 / step})
        records.bad(step, [{"id": f"s{step}"}])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # what a killed run leaves
    records.rewind(3)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    lines = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["s1", "s2", "s3"]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    MetricsWriter(tmp_path, rank=1).step({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_too_many_bad_samples_end_the_run(tmp_path: Path) -> None:
    records = MetricsWriter(tmp_path, rank=0)
    records.check_bad(TrainerState(samples=100, bad=10), 0.01)
    with pytest.raises(UserError, match="11 of 111 samples cannot be used"):
        records.check_bad(TrainerState(samples=100, bad=11), 0.01)
    records.check_bad(TrainerState(samples=9900, bad=100), 0.01)


def test_lines_that_a_full_disk_does_not_take_come_with_the_next_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "run", 1 << 16) as run:
        records = MetricsWriter(run, rank=0)
        records.step({"step": 1})
        filler = run / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        for step in range(2, 2000):  # more than what is left of the file's last page
            records.step({"step": step, "text": "x" * 50})
        assert len(read_metrics(run)) < 1000
        assert caplog.text.count("No space left on device; its lines are kept") == 1
        with pytest.raises(UserError, match=r"metrics.jsonl: no room for the last lines"):
            records.close()
        make_room(run, 1 << 20)
        records.close()
        assert [entry["step"] for entry in read_metrics(run)] == list(range(1, 2000))
