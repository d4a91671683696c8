"""Training under a real Slurm: two nodes, ZeRO-3 over gloo, interrupted and gone on from."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.run_folder.metrics_writer import read_metrics
from tests.cluster.ranks import REPOSITORY, losses
from tests.cluster.slurm_cluster import ENDED, SlurmCluster, await_that
from tests.worlds import (
    caption_shards,
    instruct_shards,
    preference_shards,
    preset_shards,
    question_shards,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("empty_queue"),
]

STEPS = 16
SMALL = ("--global-batch", 4, "--micro-batch", 2, "--max-steps", STEPS)


@pytest.fixture(autouse=True, scope="module")
def python_on_path(slurm: SlurmCluster) -> None:
    """Jobs find the Python that runs this, also where the repository has no .venv."""
    slurm.env["PATH"] = f"{Path(sys.executable).parent}:{slurm.env['PATH']}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are submitted: not the repository, so that their output lies elsewhere."""
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def captions(folder: Path) -> Path:
    return caption_shards(folder / "captions", 80)


@pytest.fixture(scope="module")
def whole(slurm: SlurmCluster, folder: Path, captions: Path) -> Path:
    """A run of MM-PT that nothing interrupts."""
    run = folder / "whole"
    job = submit(slurm, "pt", captions, run)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    return run


@pytest.fixture(scope="module")
def sft(slurm: SlurmCluster, folder: Path, whole: Path) -> Path:
    """A run of SFT that starts from what MM-PT has trained."""
    run = folder / "sft"
    data = instruct_shards(folder / "instruct", 16)
    job = submit(slurm, "sft", data, run, "--max-steps", 2, "--init-from", whole)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    return run


def submit(
    slurm: SlurmCluster, stage: str, data: object, run: Path, *more: object, preset: str = "digits"
) -> str:
    script = REPOSITORY / "slurm" / f"{stage}.sh"
    folders = data if isinstance(data, list) else [data]
    words = (script, preset, "--scale", "tiny", "--data", *folders, "--output", run, *SMALL, *more)
    return slurm.submit(*map(str, words), cwd=run.parent)


def await_file(slurm: SlurmCluster, job: str, path: Path) -> None:
    """Wait until a running job has written a file, its name a pattern; fail if it ends without."""

    def written() -> bool:
        found = any(path.parent.glob(path.name))
        assert found or slurm.job(job)["JobState"] not in ENDED, slurm.output(job)
        return found

    await_that(str(path), written, deadline=240)


def await_steps(slurm: SlurmCluster, job: str, metrics: Path, steps: int) -> None:
    """Wait until a running job has written the metrics of some steps; fail if it ends without."""

    def written() -> bool:
        done = metrics.read_text().count("\n") if metrics.exists() else 0
        assert done >= steps or slurm.job(job)["JobState"] not in ENDED, slurm.output(job)
        return done >= steps

    await_that(f"{steps} steps in {metrics}", written, deadline=240)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-????????"))


def test_two_nodes_train_to_the_end_under_zero_3(whole: Path) -> None:
    assert len(losses(whole)) == STEPS
    newest = whole / "checkpoints" / f"step-{STEPS:08}"
    assert len(list((newest / "zero").glob("zero_pp_rank_*_optim_states.pt"))) == 2
    assert '"ds_config": "zero3"' in (whole / "config.json").read_text()


def test_one_job_is_preempted_then_loses_a_node_and_ends_as_if_nothing_had_happened(
    slurm, folder, captions, whole
):
    run = folder / "run"
    job = submit(slurm, "pt", captions, run)
    metrics = run / "metrics.jsonl"
    await_steps(slurm, job, metrics, 1)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--wrap=true", cwd=folder)
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert slurm.job(job)["JobState"] == "PENDING"
    first = metrics.read_text()
    saved = len(losses(run))
    assert 0 < saved < STEPS
    assert checkpoints(run) == [f"step-{saved:08}"], slurm.output(job)

    slurm.start_now(job)
    await_steps(slurm, job, metrics, saved + 1)
    with slurm.node_replaced("node2"):
        slurm.wait(job, ("PENDING",))
        assert saved < len(losses(run)) < STEPS
        assert checkpoints(run) == [f"step-{saved:08}"], slurm.output(job)
        slurm.start_now(job)
        state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), slurm.output(job)
    assert losses(run) == losses(whole)
    assert metrics.read_text().startswith(first)  # with their times: those steps were done once


def test_a_mistake_of_the_user_s_is_not_tried_again(slurm, folder):
    job = submit(slurm, "pt", folder / "nothing", folder / "mistaken")
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")
    assert "nothing" in slurm.output(job)
    assert not (folder / "mistaken").exists()


@pytest.mark.nightly
def test_sft_starts_from_what_pt_has_trained_and_is_evaluated(slurm, folder, sft):
    assert len(losses(sft)) == 2
    words = ("--run", sft, "--data", question_shards(folder / "questions", 4))
    job = slurm.submit(str(REPOSITORY / "slurm" / "evaluate.sh"), *map(str, words), cwd=folder)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    assert (sft / "evaluation" / "scores.json").is_file()


@pytest.mark.nightly(minutes=3)
@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_rlhf_goes_on_from_sft_and_after_a_killed_rank(slurm, folder, sft, kind):
    data = preference_shards(folder / f"{kind}-data", 16)
    objective = {"kind": kind}
    if kind == "grpo":
        reward = folder / "letters.py"
        reward.write_text("def letters(answer):\n    return sum(map(ord, answer.text)) % 7\n")
        objective |= {"group": 2, "max_new_tokens": 4, "rewards": [f"{reward}:letters"]}
    more = ["--init-from", sft, "--epochs", 9, "--save-every", 2, "--learning-rate", 1e-2]
    more += ["--set", f"rlhf.objective={json.dumps(objective)}"]
    run, killed = folder / f"{kind}-run", folder / f"{kind}-killed"
    job = submit(slurm, "rlhf", data, run, *more)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    assert len(losses(run)) == STEPS

    job = submit(slurm, "rlhf", data, killed, *more)
    await_file(slurm, job, killed / "checkpoints" / "step-00000002")
    os.kill(slurm.rank(job, 1), signal.SIGKILL)
    slurm.wait(job)
    job = submit(slurm, "rlhf", data, killed, *more)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    # GRPO's losses are nearly nothing; its rewards and the weights tell runs apart.
    for step, other in zip(read_metrics(killed), read_metrics(run), strict=True):
        assert step["losses"] == other["losses"]
    weights, others = (load_file(newest_weights(each)) for each in (killed, run))
    assert all(torch.equal(weights[name], other) for name, other in others.items())


@pytest.mark.nightly(minutes=4)
@pytest.mark.parametrize("preset", ["next_gpt", "minigpt_5", "codi_2"])
def test_generation_is_trained_by_pt_then_by_it_with_a_killed_rank(slurm, folder, preset):
    """In media and out, on two nodes under ZeRO-3; see `test_any_to_any`, too."""
    kinds = ("image",) if preset == "minigpt_5" else ("image", "video", "audio")
    world = folder / preset
    preset_shards(world, rows=24)
    for stage in ("pt", "sft"):
        data = [world / kind / stage for kind in (*kinds, *(f"to_{each}" for each in kinds))]
        more = ["--max-steps", 4, "--save-every", 2, "--epochs", 9]
        more += ["--init-from", folder / f"{preset}-pt"] if stage == "sft" else []
        run = folder / f"{preset}-{stage}"
        job = submit(slurm, stage, data, run, *more, preset=preset)
        assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
        assert len(losses(run)) == 4
    killed = folder / f"{preset}-killed"
    job = submit(slurm, "sft", data, killed, *more, preset=preset)
    await_file(slurm, job, killed / "checkpoints" / "step-00000002")
    os.kill(slurm.rank(job, 1), signal.SIGKILL)
    slurm.wait(job)
    job = submit(slurm, "sft", data, killed, *more, preset=preset)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    assert losses(killed) == losses(run)


@pytest.mark.nightly
def test_a_rank_killed_in_mid_run_then_the_same_command_again(slurm, folder, captions, whole):
    run = folder / "killed"
    job = submit(slurm, "pt", captions, run, "--save-every", 2)
    await_file(slurm, job, run / "checkpoints" / "step-00000002")
    os.kill(slurm.rank(job, 1), signal.SIGKILL)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "137:0"), slurm.output(job)
    assert len((run / "metrics.jsonl").read_text().splitlines()) < STEPS

    job = submit(slurm, "pt", captions, run, "--save-every", 2)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    assert losses(run) == losses(whole)


@pytest.mark.nightly
def test_a_job_that_is_preempted_while_it_saves(slurm, folder, captions, whole):
    run = folder / "preempted-save"
    job = submit(slurm, "pt", captions, run, "--save-every", 1)
    await_file(slurm, job, run / "checkpoints" / "step-*.partial")  # any: each is there briefly
    slurm.run("scontrol", "requeue", job)
    slurm.wait(job, ("PENDING",))
    assert 0 < len(losses(run)) < STEPS
    assert checkpoints(run)[-1] == f"step-{len(losses(run)):08}", slurm.output(job)
    assert not list((run / "checkpoints").glob("step-*.*"))

    slurm.start_now(job)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert losses(run) == losses(whole)
    assert not list((run / "checkpoints").glob("step-*.*"))
