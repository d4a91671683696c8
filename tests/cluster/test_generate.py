"""Replies to shards from workers: the same files from processes and from Ray, killed or not."""

import json
import signal
from pathlib import Path

import pytest

from pipeline.generate.batches import SampleRange
from tests.cluster.ray_cluster import RayHead
from tests.cluster.slurm_cluster import await_that
from tests.cluster.warm import REPOSITORY, WarmProcess
from tests.runs import random_run
from tests.worlds import generation_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROWS = 70


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    random_run(folder / "run", "minigpt_5", signals=-200.0)
    generation_shards(folder / "data", ROWS)
    return folder


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.mark.nightly
def test_processes_and_ray_give_the_same_files_after_a_kill(
    run: Path, tmp_path: Path, ray_head: RayHead
) -> None:
    env = ray_head.env | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": ray_head.address}

    def start(output: Path, *more: str) -> WarmProcess:
        words = ["--run", run / "run", "--data", run / "data", "--output", output, "--steps", 1]
        command = [str(word) for word in ("generate", *words, "--max-new-tokens", 8, *more)]
        return WarmProcess("pipeline", command, env)

    killed = tmp_path / "killed"
    process = start(killed, "--executor", "local", "--workers", "1")
    first = SampleRange(number=0, start=0, stop=32).part(killed)

    def answered() -> bool:
        assert process.poll() is None, process.stderr_so_far()
        return first.is_file()

    await_that("the first range is answered", answered, deadline=300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "replies.jsonl").exists()
    for output, *more in ((killed, "--executor", "local"), (tmp_path / "ray", "--batch-size", "5")):
        finished = start(output, *more)
        _, errors = finished.communicate(timeout=300)
        assert finished.returncode == 0, errors
        assert ("resuming after" in errors) == (output == killed)
    found, expected = contents(killed), contents(tmp_path / "ray")
    lines = [json.loads(line) for line in found["replies.jsonl"].splitlines()]
    assert len(lines) == ROWS
    assert sum(bool(line["media"]) for line in lines) > ROWS // 2  # weights are random
    assert found == expected
