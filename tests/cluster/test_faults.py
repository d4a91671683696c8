"""Ranks, nodes and data that fail while a run is on: it goes on where it was, or says why not."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.train.watchdog import STALLED
from tests.cluster.ranks import Ranks, losses, run_ranks, wait_for
from tests.worlds import caption_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 6
SMALL = ("--global-batch", 4, "--micro-batch", 2, "--max-steps", STEPS, "--save-every", 2)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 64)


@pytest.fixture(scope="module")
def whole(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    run = tmp_path_factory.mktemp("whole") / "pt"
    outcome = run_ranks(2, *words(captions, run))
    assert outcome.code == 0, outcome.stderr
    return run


def words(data: Path, run: Path) -> tuple[object, ...]:
    return ("pt", "digits", "--scale", "tiny", "--data", data, "--output", run, *SMALL)


def test_a_stopped_rank_is_named_by_the_other_and_nothing_is_lost(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = Ranks(2, (*words(captions, run), "--stall-seconds", 12))
    wait_for(run / "checkpoints" / "step-00000002", ranks)
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    second = run_ranks(1, *words(captions, run))  # the same command once more
    assert second.code == 2
    in_use = f"error: --output {run}: in use by process {ranks.processes[0].pid} on host "
    assert second.stderr.splitlines()[-1].startswith(in_use)
    outcome = ranks.wait()
    assert outcome.code == STALLED, outcome.stderr
    report = json.loads((run / "stalled-rank-0.json").read_text())
    assert report["step"] > 2
    # Of the steps' phases, these have no samples of their own; where a rank waits is chance.
    assert report["samples"] or report["phase"] in ("metrics", "save")
    assert report["behind"][0].startswith("rank 1 ")
    assert "silent" in report["behind"][0]
    assert "stalled: rank 0" in outcome.stderr

    assert run_ranks(2, *words(captions, run)).code == 0
    assert losses(run) == losses(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_in_mid_run_ends_in_one_line(
    workers: int, captions: Path, whole: Path, tmp_path: Path
) -> None:
    """What was trained is saved; put back, the same command goes on."""
    data = tmp_path / "captions"
    shutil.copytree(captions, data)
    run = tmp_path / "run"
    told = (*words(data, run), "--save-every", 100)
    ranks = Ranks(2, (*told, "--num-workers", workers))
    wait_for(run / "metrics.jsonl", ranks)
    [shard] = data.glob("*.arrow")
    kept = shard.read_bytes()
    half = tmp_path / "half"
    half.write_bytes(kept[: len(kept) // 2])
    half.replace(shard)  # while the old one is mapped
    outcome = ranks.wait()
    assert outcome.code == 2, outcome.stderr
    [line] = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    done = len(losses(run))
    assert f"{shard}: has changed since it was checked; restore the one with sha256" in line
    assert line.endswith(f"then the same command resumes after step {done}")
    assert "Traceback" not in outcome.stderr
    assert 0 < done < STEPS

    outcome = run_ranks(2, *told)
    assert outcome.code == 2
    assert "shard is damaged" in outcome.stderr
    shard.write_bytes(kept)
    assert run_ranks(2, *told).code == 0
    assert losses(run) == losses(whole)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint(
    captions: Path, tmp_path: Path
) -> None:
    """The first step's learning rate is 0, the second one's ruins the weights; they are finite."""
    run = tmp_path / "run"
    often = ("--save-every", 1, "--keep-last", 1, "--max-nonfinite-steps", 3)
    outcome = run_ranks(2, *words(captions, run), "--learning-rate", 1e25, *often)
    assert outcome.code == 2, outcome.stderr
    assert outcome.stderr.splitlines()[-1] == (
        "error: step 5: loss or gradient was not finite in 3 steps in a row; the last good state "
        "is the checkpoint step-00000001: lower the learning rate, or look at the samples of step 3"
    )
    assert "step 3: loss nan, gradient norm inf: not finite" in outcome.stderr
    checkpoints = run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step-00000001"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [entry["loss"] is None for entry in entries] == [False, False, True, True, True]
    assert [entry["skipped_steps"] for entry in entries] == [0, 0, 1, 2, 3]
