"""Training for real: ZeRO-3 over gloo on two ranks, killed, stopped, damaged and gone on from.

Losses are compared with those of ranks that DeepSpeed's own launcher has started.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder
from model.build import build
from model.presets import system
from pipeline.config.parameter_groups import lr_factor
from pipeline.run_folder.metrics_writer import whole_lines
from tests.cluster.ranks import REPOSITORY, Ranks, free_port, losses, run_ranks, wait_for
from tests.worlds import caption_shards, instruct_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 6
SMALL = ("--global-batch", 8, "--micro-batch", 2, "--max-steps", STEPS, "--save-every", 2)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 64)


@pytest.fixture(scope="module")
def whole(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of MM-PT on two ranks, started with DeepSpeed's own launcher."""
    run = tmp_path_factory.mktemp("whole") / "pt"
    with launched(captions, run) as launcher:
        assert launcher.wait() == 0
    return run


def launched(captions: Path, run: Path, *more: object) -> subprocess.Popen[bytes]:
    """Start a run on two ranks with DeepSpeed's own launcher."""
    words = ["--module", "pipeline", "pt", "digits", "--data", captions, "--output", run, *SMALL]
    folder = Path(sys.executable).parent
    port = ("--master_port", free_port())
    command = [folder / "deepspeed", "--num_accelerators", "2", *port, *words, *more]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, env=environment)


def test_a_run_leaves_what_its_users_rely_on(whole: Path) -> None:
    assert len(losses(whole)) == STEPS
    assert (whole / "config.json").is_file()
    assert (whole / "report.html").is_file()
    assert (whole / "checkpoints" / "latest").read_text().strip() == "step-00000006"
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["samples"] == STEPS * 8
    assert {"tokens", "lr", "grad_norm", "tokens_per_second", "padding_share"} <= last.keys()


def test_only_the_projector_is_trained_and_saved(whole: Path) -> None:
    preset = system("digits")
    fresh = dict(build(preset.model, preset.pt, weights="pretrained").named_parameters())
    saved = load_file(whole / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert set(saved) == {name for name in fresh if name.startswith("inputs.image.projector.")}
    assert all(not torch.equal(saved[name], fresh[name]) for name in saved)
    size = sum(f.stat().st_size for f in (whole / "checkpoints/step-00000006").rglob("*.pt"))
    assert size < 8 * sum(tensor.numel() * 4 for tensor in saved.values())


def test_sigkill_in_mid_run_then_the_same_command_gives_the_same_curve(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    words = ("pt", "digits", "--data", captions, "--output", tmp_path / "run", *SMALL)
    ranks = Ranks(2, words)
    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    wait_for(first, ranks)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    ranks.kill()
    ranks.wait()
    assert len(losses_so_far(tmp_path / "run")) < STEPS
    assert run_ranks(2, *words).code == 0
    assert losses(tmp_path / "run") == losses(whole)


def test_sigterm_saves_and_says_try_again(captions: Path, whole: Path, tmp_path: Path) -> None:
    words = ("pt", "digits", "--data", captions, "--output", tmp_path / "run", *SMALL)
    ranks = Ranks(2, (*words, "--save-every", 1000))
    wait_for(tmp_path / "run" / "metrics.jsonl", ranks)
    ranks.processes[0].send_signal(signal.SIGTERM)
    outcome = ranks.wait()
    assert outcome.code == 75, outcome.stderr
    assert run_ranks(2, *words).code == 0
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.nightly
def test_ranks_whose_launcher_gets_sigterm_save_and_end(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    """DeepSpeed's launcher dies of the signal and leaves the process that started the ranks."""
    run = tmp_path / "run"
    with launched(captions, run, "--save-every", 1000) as launcher:
        while not (run / "metrics.jsonl").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(launcher.wait(timeout=0.05))
        rank = os.pidfd_open(json.loads((run / "in-use.json").read_bytes())["pid"])
        launcher.terminate()
    assert select.select([rank], [], [], 120)[0], "rank 0 goes on"
    assert 0 < len(losses_so_far(run)) < STEPS
    words = ("pt", "digits", "--data", captions, "--output", run, *SMALL)
    assert run_ranks(2, *words).code == 0
    assert losses(run) == losses(whole)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    words = ("pt", "digits", "--data", captions, "--output", tmp_path / "run", *SMALL)
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    victim = next((newest / "zero").glob("*optim_states.pt"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    outcome = run_ranks(2, *words)
    assert outcome.code == 0
    assert f"damaged: zero/{victim.name} is not what was written" in outcome.stderr
    assert losses(tmp_path / "run") == losses(whole)


def test_validation_does_not_change_training_and_resumes_with_it(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed while it trains, resumed on the same ranks; then uninterrupted on one rank."""
    held_out = caption_shards(tmp_path / "held-out", 12, seed=7)
    validated = ("--validation-data", held_out, "--validate-every", 3, "--keep-last", 1)
    words = ("pt", "digits", "--data", captions, "--output", tmp_path / "run", *SMALL, *validated)
    ranks = Ranks(2, words)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000003", ranks)
    ranks.kill()
    ranks.wait()
    assert run_ranks(2, *words).code == 0
    assert losses(tmp_path / "run") == losses(whole)
    name = "checkpoints/step-00000006/weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    found = validations(tmp_path / "run")
    assert [one["step"] for one in found] == [0, 3, 6]
    assert [one["blind"]["samples"] for one in found] == [12, 12, 12]
    best = min(found[1:], key=lambda one: one["loss"])["step"]
    marker = (tmp_path / "run" / "checkpoints" / "best").read_text()
    assert marker == f"step-{best:08d}\n"
    assert "Validation on held-out samples" in (tmp_path / "run" / "report.html").read_text()
    alone = tmp_path / "alone"
    assert run_ranks(1, *words, "--output", alone).code == 0
    for one, other in zip(validations(alone), found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["accuracy"] == other["accuracy"]


@pytest.mark.nightly(minutes=1)
def test_sigterm_in_mid_validation_leaves_it_to_the_next_start(
    captions: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, then blind, then after the last step, in one start after another.

    The validation has two batches with media, then the same two without.
    """
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    held_out = caption_shards(tmp_path / "held-out", 12, seed=7)
    words = ("pt", "digits", "--data", captions, *SMALL, "--save-every", 1000)
    words = (*words, "--validation-data", held_out, "--validate-every", 2)
    assert run_ranks(2, *words, "--output", undisturbed).code == 0
    for stop in ("0 1", "2 3", "6 0"):
        monkeypatch.setenv("STOP_AFTER", stop)
        words_of_run = (*words, "--output", run)
        outcome = Ranks(2, words_of_run, module="tests.cluster.stopping_rank").wait()
        assert outcome.code == 75, outcome.stderr
        step = int(stop[0])
        assert [one["step"] for one in validations(run)] == list(range(0, step, 2))
        assert f"stopping on request: no validation after step {step} yet" in outcome.stderr
        said = f"stopped after step {step} of {STEPS}, saved; the same command resumes"
        assert (said if step else "the same command starts again") in outcome.stderr
        assert "Traceback" not in outcome.stderr
    outcome = run_ranks(2, *words, "--output", run)
    assert outcome.code == 0, outcome.stderr
    assert "done: " in outcome.stderr
    assert losses(run) == losses(undisturbed) == losses(whole)
    assert [one["step"] for one in validations(run)] == [0, 2, 4, 6]
    for one, other in zip(validations(run), validations(undisturbed), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    for name in ("best", "latest", "step-00000006/weights.safetensors"):
        files = (folder / "checkpoints" / name for folder in (run, undisturbed))
        assert len({file.read_bytes() for file in files}) == 1, name
    outcome = run_ranks(2, *words, "--output", run)
    assert outcome.code == 0
    assert "already complete" in outcome.stderr


def validations(run: Path) -> list[dict[str, Any]]:
    lines = whole_lines(run / "validation.jsonl")
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (1, 2), (2, 4)])
def test_the_split_of_a_batch_does_not_change_the_curve(
    ranks: int, micro: int, captions: Path, whole: Path, tmp_path: Path
) -> None:
    words = ("pt", "digits", "--data", captions, "--output", tmp_path / "run", *SMALL)
    assert run_ranks(ranks, *words, "--micro-batch", micro).code == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)


def test_a_longer_run_goes_on_with_a_smaller_micro_batch_on_its_own_schedule(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    """Raised `--epochs` and `--max-steps` stretch the schedule from the resumed step on."""
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole), str(run)], check=True)
    words = ("pt", "digits", "--data", captions, "--output", run, *SMALL)
    longer = ("--epochs", 2, "--max-steps", STEPS + 3, "--micro-batch", 1)
    outcome = run_ranks(2, *words, *longer)
    assert outcome.code == 0, outcome.stderr
    assert losses(run)[:STEPS] == losses(whole)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(entries) == STEPS + 3
    peak = system("digits").pt.learning_rate
    # The rate that an entry has is that of the step after it.
    expected = [peak * lr_factor(step, warmup=1, steps=STEPS + 3) for step in range(1, STEPS + 4)]
    assert [entry["lr"] for entry in entries[STEPS:]] == pytest.approx(expected[STEPS:])
    outcome = run_ranks(2, *words)
    assert outcome.code == 2
    assert "a run of 9 steps, this one has 6; --epochs and --max-steps may be" in outcome.stderr


def test_sft_with_adapters_on_a_mix_of_pictures_and_text(whole: Path, tmp_path: Path) -> None:
    """Micro-batches of one: in most steps one rank has a picture and the other has none."""
    pictured = ShardSet([instruct_shards(tmp_path / "source", 24)])
    mixed = [without_picture(pictured[i]) if i % 2 else pictured[i] for i in range(24)]
    data = write_folder(tmp_path / "mixed", mixed, job="test")
    words = ("sft", "digits", "--data", data, "--output", tmp_path / "run", "--max-steps", 8)
    outcome = run_ranks(2, *words, "--global-batch", 2, "--micro-batch", 1, "--init-from", whole)
    assert outcome.code == 0, outcome.stderr
    assert len(losses(tmp_path / "run")) == 8
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000008" / "weights.safetensors")
    assert any("lora_A" in name for name in saved)
    assert all(tensor.numel() for tensor in saved.values())


def without_picture(sample: Sample) -> Sample:
    """Turn a sample into text alone."""
    turns = tuple(Turn(role=t.role, text=t.text.replace("<image>", "")) for t in sample.turns)
    return replace(sample, turns=turns, media=())


def losses_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()
