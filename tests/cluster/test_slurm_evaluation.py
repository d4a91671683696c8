"""Evaluation that is preempted, asked to stop or killed: it goes on, to the same answers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.ranks import REPOSITORY, run_ranks
from tests.cluster.slurm_cluster import SlurmCluster, await_that
from tests.worlds import instruct_shards, question_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

FILES = ("predictions.jsonl", "predictions_blind.jsonl", "scores.json")
ASKED = 24


@pytest.fixture(autouse=True, scope="module")
def python_on_path(slurm: SlurmCluster) -> None:
    """Jobs find the Python that runs this, also where the repository has no .venv."""
    slurm.env["PATH"] = f"{Path(sys.executable).parent}:{slurm.env['PATH']}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What is asked of a run that has hardly learnt anything; one question at a time."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = instruct_shards(folder / "dialogues", 8)
    run = folder / "run"
    train = ("sft", "digits", "--data", data, "--output", run, "--max-steps", 1)
    outcome = run_ranks(1, *train, "--global-batch", 2, "--micro-batch", 2)
    assert outcome.code == 0, outcome.stderr
    questions = question_shards(folder / "questions", ASKED)
    return ("--run", str(run), "--data", str(questions), "--batch", "1")


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole")
    assert start(words, output).wait() == 0
    return output


def start(words: tuple[str, ...], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "evaluate", *words, "--output", str(output)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, "DS_ACCELERATOR": "cpu"}, stderr=None
    )


def answered(output: Path) -> int:
    """How many answers are kept."""
    return sum(path.read_text().count("\n") - 1 for path in output.glob("*.partial"))


def same(output: Path, whole: Path) -> bool:
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    return all((output / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("how", ["requeue", "USR1"])
def test_a_job_that_must_go_comes_back(slurm, words, whole, tmp_path, how):
    """Preempted, or two minutes before the end of its time."""
    script = str(REPOSITORY / "slurm" / "evaluate.sh")
    output = tmp_path / "scores"
    job = slurm.submit(script, *words, "--output", str(output), cwd=tmp_path)
    await_that("some answers", lambda: answered(output) > 3, deadline=240)
    if how == "requeue":
        slurm.run("scontrol", "requeue", job)
    else:
        slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job, ("PENDING",))
    kept = answered(output)
    assert 3 < kept < 2 * ASKED
    assert not (output / "scores.json").exists()

    slurm.start_now(job)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert f"resuming after {kept} answers" in slurm.output(job)
    assert same(output, whole)


def test_killed_it_goes_on_after_the_last_whole_answer(words, whole, tmp_path):
    output = tmp_path / "scores"
    process = start(words, output)
    await_that("some answers", lambda: answered(output) > ASKED + 3, deadline=240)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = output / "predictions_blind.jsonl.partial"
    kept.write_text(kept.read_text()[:-5])  # and torn
    assert start(words, output).wait() == 0
    assert same(output, whole)
