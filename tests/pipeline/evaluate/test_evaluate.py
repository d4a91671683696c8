"""The options of `evaluate`, what it skips, and where it runs."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from etl.cli import UserError, parse
from etl.storage.schema import Turn
from etl.storage.shards import ShardSet, write_folder
from model.build import build
from model.freeze import set_trainable
from model.presets import system
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig, read_config
from pipeline.evaluate import evaluate as evaluation
from pipeline.evaluate.evaluate import EvaluateOptions
from tests.worlds import question_shards, sound_question


@pytest.mark.parametrize("option", ["--batch", "--max-new-tokens", "--limit"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_number_below_one_is_an_error(option: str, value: str) -> None:
    args = ["--run", "nowhere", "--data", "nowhere", option, value]
    with pytest.raises(UserError, match=rf"{option}: {value}, want at least 1"):
        parse(EvaluateOptions, prog="evaluate", args=args)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose weights are those of the first step."""
    return run_of("digits", tmp_path / "run")


def run_of(name: str, folder: Path) -> Path:
    folder.mkdir()
    preset = system(name)
    sft = replace(preset.sft, precision="bf16")
    config = RunConfig(
        stage="sft", system=replace(preset, sft=sft), data=("data",), output=str(folder)
    )
    config.save(folder)
    model = build(preset.model, sft, weights="pretrained")
    trained = set_trainable(model, sft.trainable)
    weights = {name: weight for name, weight in model.named_parameters() if name in trained}
    write_weights(folder, weights, {})
    return folder


def test_samples_without_an_answer_are_reported_and_skipped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = ShardSet([question_shards(tmp_path / "source", 4)])
    samples = [source[index] for index in range(4)]
    samples[1] = replace(samples[1], turns=samples[1].turns[:-1])
    empty = Turn(role="assistant", text=" ")
    samples[2] = replace(samples[2], turns=(*samples[2].turns[:-1], empty))
    data = write_folder(tmp_path / "data", samples, job="test")
    monkeypatch.setattr(evaluation, "StopRequest", lambda: SimpleNamespace(asked=False))
    words = ["--run", run, "--data", data, "--batch", 2, "--max-new-tokens", 2]
    assert evaluation.evaluate(list(map(str, words))) == 0
    folder = run / "evaluation"
    names = [samples[index].id for index in (0, 3)]
    for file in ("predictions.jsonl", "predictions_blind.jsonl"):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        assert [line["id"] for line in lines if line["truth"].strip()] == names
    bad = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    assert bad == [
        {
            "id": samples[1].id,
            "reason": f"sample {samples[1].id}: the last turn is not the assistant's",
        },
        {"id": samples[2].id, "reason": f"sample {samples[2].id}: has no answer"},
    ]
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["questions"], scores["skipped"]) == (2, 2)
    assert "2 of 4 samples skipped, see" in caplog.text


def test_sounds_that_are_cut_are_answered_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of("digits_audio", tmp_path / "run")
    data = write_folder(tmp_path / "data", [sound_question(1.0), sound_question(3.5)], job="test")
    monkeypatch.setattr(evaluation, "StopRequest", lambda: SimpleNamespace(asked=False))
    words = ["--run", run, "--data", data, "--max-new-tokens", 2]
    assert evaluation.evaluate(list(map(str, words))) == 0
    folder = run / "evaluation"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    reason = "audio of 3.5 s, of which the encoder hears 2 s"
    assert [line["cut"] for line in lines] == ["", reason]
    assert json.loads((folder / "scores.json").read_text())["cut"] == 1
    assert "1 of 2 samples have media longer than the encoder takes" in caplog.text
    assert f"the first: sample sound-3.5, {reason}" in caplog.text


def test_nothing_to_ask_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSet([question_shards(tmp_path / "source", 1)])
    sample = replace(source[0], turns=source[0].turns[:-1])
    data = write_folder(tmp_path / "data", [sample], job="test")
    monkeypatch.setattr(evaluation, "StopRequest", lambda: SimpleNamespace(asked=False))
    message = rf"^{data}: sample {sample.id}: the last turn is not .* \(1 of 1 samples\)$"
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(["--run", str(run), "--data", str(data)])


def test_a_run_is_opened_on_the_accelerator_in_the_precision_that_it_was_trained_in(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "inference_device", lambda: torch.device("meta"))
    model = evaluation.load_run(read_config(run / "config.json"), run)
    weights = list(model.parameters())
    assert {weight.device.type for weight in weights} == {"meta"}
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
