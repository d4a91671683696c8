"""Evaluation that is preempted, asked to stop or killed: it goes on, to the same answers."""

import sys
from pathlib import Path

import pytest

from tests.cluster.ranks import REPOSITORY, Ranks, run_ranks, wait_for
from tests.cluster.slurm_cluster import ENDED, SlurmCluster, await_that
from tests.worlds import instruct_shards, question_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("empty_queue"),
]

FILES = (
    *("predictions.jsonl", "predictions_blind.jsonl", "scores.json"),
    *("bad_samples.jsonl", "examples.json", "report.html"),
)
ASKED = 16
REQUEUE = ("scontrol", "requeue")
TIME_ENDS = ("scancel", "--batch", "--signal=USR1")


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
    train = ("sft", "digits", "--scale", "tiny", "--data", data, "--output", run, "--max-steps", 1)
    outcome = run_ranks(1, *train, "--global-batch", 2, "--micro-batch", 2)
    assert outcome.code == 0, outcome.stderr
    questions = question_shards(folder / "questions", ASKED)
    return ("--run", str(run), "--data", str(questions), "--batch", "1", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole")
    outcome = run_ranks(1, "evaluate", *words, "--output", output)
    assert outcome.code == 0, outcome.stderr
    return output


def answered(output: Path) -> int:
    """How many answers are kept."""
    return sum(path.read_text().count("\n") - 1 for path in output.glob("*.partial"))


def await_answers(slurm: SlurmCluster, job: str, output: Path, number: int) -> None:
    """Wait until a running job has kept some answers; fail if it ends without."""

    def written() -> bool:
        enough = answered(output) >= number
        assert enough or slurm.job(job)["JobState"] not in ENDED, slurm.output(job)
        return enough

    await_that(f"{number} answers", written, deadline=240)


def same(output: Path, whole: Path) -> bool:
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    return all((output / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    "stops", [(REQUEUE,), pytest.param((TIME_ENDS, REQUEUE), marks=pytest.mark.nightly)]
)
def test_a_job_that_must_go_comes_back(slurm, words, whole, tmp_path, stops):
    output = tmp_path / "scores"
    script = str(REPOSITORY / "slurm" / "evaluate.sh")
    job = slurm.submit(script, *words, "--output", str(output), cwd=tmp_path)
    kept = 0
    for stop in stops:
        await_answers(slurm, job, output, kept + 3)
        slurm.run(*stop, job)
        slurm.wait(job, ("PENDING",))
        kept = answered(output)
        assert 3 <= kept < 2 * ASKED
        assert not (output / "scores.json").exists()
        slurm.start_now(job)
        await_that(
            "its start", lambda kept=kept: f"resuming after {kept} a" in slurm.output(job), 240
        )
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", str(len(stops))), slurm.output(
        job
    )
    assert same(output, whole)


@pytest.mark.nightly
def test_killed_it_goes_on_after_the_last_whole_answer(words, whole, tmp_path):
    output = tmp_path / "scores"
    ranks = Ranks(1, ["evaluate", *words, "--output", output])
    await_that("some answers", lambda: answered(output) > ASKED + 3, deadline=240)
    ranks.kill()
    ranks.wait()
    kept = output / "predictions_blind.jsonl.partial"
    kept.write_text(kept.read_text()[:-5])  # and torn
    assert run_ranks(1, "evaluate", *words, "--output", output).code == 0
    assert same(output, whole)


def test_two_ranks_give_the_same_files_and_one_rank_resumes_them(words, whole, tmp_path):
    output = tmp_path / "scores"
    ranks = Ranks(2, ["evaluate", *words, "--output", output])
    wait_for(output / "predictions.jsonl.1.partial", ranks)
    ranks.kill()
    ranks.wait()
    assert not (output / "scores.json").exists()
    assert run_ranks(1, "evaluate", *words, "--output", output).code == 0
    assert same(output, whole)
    both = tmp_path / "both"
    outcome = run_ranks(2, "evaluate", *words, "--output", both)
    assert outcome.code == 0, outcome.stderr
    assert same(both, whole)
