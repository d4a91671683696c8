"""RLHF from preferences on two ranks under ZeRO-3: killed, resumed, and equal to one rank."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.presets import system
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.parameter_groups import lr_factor
from pipeline.evaluate.assistant import Assistant
from pipeline.generate import GeneratingAssistant
from tests.cluster.ranks import Ranks, losses, run_ranks, wait_for
from tests.runs import random_run
from tests.worlds import generation_shards, instruct_shards, preference_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

OBJECTIVE = {"kind": "dpo", "sft_weight": 0.1, "media_weight": 1.0, "anchor_weight": 1.0}
SMALL = ("--global-batch", 3, "--micro-batch", 1, "--max-steps", 4, "--save-every", 2)
"""Three samples a step: a rank has two, the other has one and a dummy."""


def test_mdpo_goes_on_from_sft(tmp_path: Path) -> None:
    dialogues = instruct_shards(tmp_path / "dialogues", 8)
    preferences = preference_shards(tmp_path / "preferences", 12)
    sft, whole, run = (tmp_path / name for name in ("sft", "whole", "run"))
    words = ["sft", "digits", "--scale", "tiny", "--data", dialogues, "--output", sft]
    assert run_ranks(1, *words, "--max-steps", 3).code == 0
    words = ["rlhf", "digits", "--scale", "tiny", "--data", preferences, "--init-from", sft]
    words += [*SMALL, "--set", f"rlhf.objective={json.dumps(OBJECTIVE)}"]
    held_out = preference_shards(tmp_path / "held-out", 5)
    words += ["--validation-data", held_out, "--validate-every", 2]
    outcome = run_ranks(1, *words, "--output", whole)
    assert outcome.code == 0, outcome.stderr

    ranks = Ranks(2, [*words, "--output", run])
    wait_for(run / "checkpoints" / "step-00000002", ranks)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    ranks.kill()
    ranks.wait()
    assert run_ranks(2, *words, "--output", run).code == 0
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(line)["losses"] for line in (lines[0], lines[-1]))
    # Policy and reference are one at first; then answers are told apart.
    assert first["chosen_reward"] == pytest.approx(0.0, abs=1e-5)
    assert last["chosen_reward"] - last["rejected_reward"] > 1e-4
    same_validations(run, whole)

    saved, before = (
        load_file(folder / "checkpoints" / step / "weights.safetensors")
        for folder, step in ((run, "step-00000004"), (sft, "step-00000003"))
    )
    assert saved.keys() == before.keys()
    moved = {name for name in saved if not torch.equal(saved[name], before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert isinstance(Assistant.open(run).ask("Which digit is red?"), str)


def same_validations(run: Path, whole: Path) -> None:
    found, expected = (
        [json.loads(line) for line in (folder / "validation.jsonl").open()]
        for folder in (run, whole)
    )
    assert [one["step"] for one in found] == [0, 2, 4]
    for one, other in zip(found, expected, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5, abs=1e-6)
        assert one["blind"] == pytest.approx(other["blind"], rel=1e-5)
        assert (one["samples"], one["accuracy"]) == (5, other["accuracy"])
        assert one["blind"]["loss"] != pytest.approx(one["losses"]["chosen"], rel=1e-5)


@pytest.mark.nightly(minutes=1)
def test_grpo_gives_the_same_answers_on_any_number_of_ranks(tmp_path: Path) -> None:
    """And after a kill; under ZeRO-3 the ranks decode together, also a rank without a question.

    Each step updates twice, the second time with the log-probabilities of before the first.
    """
    questions = preference_shards(tmp_path / "questions", 12)
    (tmp_path / "own.py").write_text(
        "def letters(answer):\n    return sum(map(ord, answer.text)) % 7\n"
    )
    objective = {"kind": "grpo", "group": 3, "max_new_tokens": 6, "beta": 0.1, "updates": 2}
    objective["rewards"] = [f"{tmp_path / 'own.py'}:letters"]
    words = ["rlhf", "digits", "--scale", "tiny", "--data", questions, *SMALL]
    words += ["--set", f"rlhf.objective={json.dumps(objective)}", "--learning-rate", 1e-2]
    whole, run = tmp_path / "whole", tmp_path / "run"
    outcome = run_ranks(1, *words, "--output", whole, "--ds-config", "zero2")
    assert outcome.code == 0, outcome.stderr

    words += ["--output", run, "--ds-config", "zero3"]
    ranks = Ranks(2, words)
    wait_for(run / "checkpoints" / "step-00000002", ranks)
    os.kill(ranks.processes[0].pid, signal.SIGKILL)
    ranks.kill()
    ranks.wait()
    assert run_ranks(2, *words).code == 0
    expected, found = (
        [json.loads(line)["losses"] for line in (folder / "metrics.jsonl").open()]
        for folder in (whole, run)
    )
    assert len(found) == 4
    for name in ("reward", "length"):
        assert [step[name] for step in found] == [step[name] for step in expected]
    assert [step["kl"] for step in found] == pytest.approx(
        [step["kl"] for step in expected], rel=1e-3, abs=1e-7
    )
    assert len({step["reward"] for step in found}) > 1
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").open()]
    stage = system("digits").tiny().stage("rlhf")
    warmup = max(1, round(stage.warmup * 4))
    assert rates == [
        pytest.approx(1e-2 * lr_factor(step, warmup=warmup, steps=4, schedule=stage.schedule))
        for step in range(1, 5)
    ]


BRIGHT = """
import io
import numpy as np
from PIL import Image


def bright(answer):
    media = [one.data for one in answer.media if one.kind == "image"]
    pictures = [np.asarray(Image.open(io.BytesIO(data)), float) for data in media]
    return len(answer.media) + sum(float(picture.mean() > 100) for picture in pictures)
"""


@pytest.mark.nightly(minutes=2)
def test_grpo_generates_the_same_media_on_any_number_of_ranks(tmp_path: Path) -> None:
    """And after a kill; under ZeRO-3 the ranks call projectors and generators together.

    On two ranks the losses are the same to the bit, killed or not.
    """
    requests = generation_shards(tmp_path / "requests", 12)
    sft, preset = tmp_path / "sft", system("digits_any").tiny()
    image = preset.model.outputs[0]
    image = replace(image, generator=replace(image.generator, steps=2))
    random_run(sft, replace(preset, model=replace(preset.model, outputs=(image,))), signals=3.0)
    (tmp_path / "own.py").write_text(BRIGHT)
    objective = {"kind": "grpo", "group": 3, "max_new_tokens": 4, "beta": 0.1, "updates": 2}
    objective["rewards"] = [f"{tmp_path / 'own.py'}:bright"]
    words = ["rlhf", sft / "config.json", "--data", requests, "--init-from", sft, *SMALL]
    words += ["--set", f"rlhf.objective={json.dumps(objective)}", "--learning-rate", 1e-3]
    one, whole, run = (tmp_path / name for name in ("one", "whole", "run"))
    outcome = run_ranks(1, *words, "--output", one, "--ds-config", "zero2")
    assert outcome.code == 0, outcome.stderr

    words += ["--ds-config", "zero3", "--output"]
    outcome = run_ranks(2, *words, whole)
    assert outcome.code == 0, outcome.stderr
    ranks = Ranks(2, [*words, run])
    wait_for(run / "checkpoints" / "step-00000002", ranks)
    os.kill(ranks.processes[0].pid, signal.SIGKILL)
    ranks.kill()
    ranks.wait()
    assert run_ranks(2, *words, run).code == 0
    assert losses(run) == losses(whole)
    expected, found = (
        [json.loads(line)["losses"] for line in (folder / "metrics.jsonl").open()]
        for folder in (one, run)
    )
    for name in ("reward", "length"):
        assert [step[name] for step in found] == [step[name] for step in expected]
    for name in ("kl", "grpo"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=1e-2, abs=1e-5
        )
    rewards = [step["reward"] for step in found]
    assert len(set(rewards)) > 1
    assert min(rewards) > 0

    # The run generates media as the one that it goes on from.
    saved, before = (load_file(newest_weights(folder)) for folder in (run, sft))
    assert saved.keys() == before.keys()
    moved = {name for name in saved if not torch.equal(saved[name], before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert GeneratingAssistant.open(run).generate("7", steps=1, max_new_tokens=4).id
    outcome = run_ranks(1, *words[:6], "--output", tmp_path / "refused")
    assert outcome.code == 2
    assert "generates media, which rlhf trains by GRPO alone" in outcome.stderr


@pytest.mark.nightly(minutes=2)
def test_grpo_rewarded_by_a_reward_model(tmp_path: Path) -> None:
    """Learnt on two ranks under ZeRO-3, then loaded beside a policy, there and on one rank."""
    preferences = preference_shards(tmp_path / "preferences", 12)
    base = ["rlhf", "digits", "--scale", "tiny", "--data", preferences, *SMALL]
    base += ["--learning-rate", 1e-2]
    rewarder, whole, run = (tmp_path / name for name in ("rewarder", "whole", "run"))
    learnt = [*base, "--set", 'rlhf.objective={"kind": "reward", "center": 0.01}']
    outcome = run_ranks(2, *learnt, "--output", rewarder, "--ds-config", "zero3")
    assert outcome.code == 0, outcome.stderr
    assert run_ranks(1, *learnt, "--output", tmp_path / "one", "--ds-config", "zero2").code == 0
    assert losses(rewarder) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    head = load_file(rewarder / "checkpoints" / "step-00000004" / "objective.safetensors")
    assert list(head) == ["reward_head.weight"]

    objective = {"kind": "grpo", "group": 3, "max_new_tokens": 6}
    objective["rewards"] = [f"model:{rewarder}"]
    words = [*base, "--set", f"rlhf.objective={json.dumps(objective)}"]
    outcome = run_ranks(1, *words, "--output", whole, "--ds-config", "zero2")
    assert outcome.code == 0, outcome.stderr
    outcome = run_ranks(2, *words, "--output", run, "--ds-config", "zero3")
    assert outcome.code == 0, outcome.stderr
    expected, found = (
        [json.loads(line)["losses"]["reward"] for line in (folder / "metrics.jsonl").open()]
        for folder in (whole, run)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(found)) == 4

    outcome = run_ranks(1, *words, "--output", tmp_path / "refused", "--seed", 1)
    assert outcome.code == 2
    assert "was trained on other weights of inputs.image.encoder" in outcome.stderr
    outcome = run_ranks(1, *words, "--output", tmp_path / "refused", "--init-from", rewarder)
    assert "is a reward model, which gives no answers" in outcome.stderr
