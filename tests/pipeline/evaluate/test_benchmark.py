"""The benchmark interface, on a benchmark of two questions: samples, predictions, both commands."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.digits.records import pair_sample
from model.build import build
from model.freeze import set_trainable
from model.presets import system
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
from pipeline.evaluate import benchmarks
from pipeline.evaluate.benchmark import (
    Answered,
    Benchmark,
    BenchmarkSamples,
    Headline,
    Question,
    percent,
)
from pipeline.evaluate.benchmarks import find_benchmark
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.metrics import Metrics, mean_metric
from pipeline.evaluate.prediction_files import read_answers, save_json
from pipeline.evaluate.score import score

QUESTIONS = [
    Question(id="a", split="easy", text="Which digit?", answer="3", images=("one.png",)),
    Question(id="b", split="hard", text="Which digit?", answer="5", images=("one.png",)),
]


def length_metrics(answered: Sequence[Answered]) -> Metrics:
    return {
        q.split: {"length": mean_metric([len(a)], [q.unit]), "n": mean_metric([1.0], [q.unit])}
        for q, a in answered
    }


TOY = Benchmark(name="toy", read=lambda folder: list(QUESTIONS), metrics=length_metrics)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the benchmark, which is in the table."""
    monkeypatch.setattr(benchmarks, "BENCHMARKS", (*benchmarks.BENCHMARKS, TOY))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "one.png").write_bytes(pair_sample(0, 0).media[0].data)
    return folder


@pytest.fixture
def trained_run(tmp_path: Path) -> Path:
    """A run folder of the digits preset with untrained weights."""
    run = tmp_path / "run"
    preset = system("digits")
    config = RunConfig(stage="sft", system=preset, data=(), output=str(run), weights="random")
    model = build(preset.model, preset.sft, weights="random")
    set_trainable(model, preset.sft.trainable)
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    write_weights(run, trainable, identity={})
    config.save(run)
    return run


def write_predictions(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_questions_become_samples(data: Path) -> None:
    samples = BenchmarkSamples(TOY, data)
    assert len(samples) == 2
    assert [turn.text for turn in samples[1].turns] == ["<image>\nWhich digit?", "5"]
    assert samples[1].media[0].mime == "image/png"
    assert samples[1].lineage["kind"] == "hard"
    limited = BenchmarkSamples(TOY, data, 1)
    assert len(limited) == 1
    assert limited.fingerprint != samples.fingerprint


def test_a_missing_image_is_an_error(data: Path) -> None:
    (data / "one.png").unlink()
    with pytest.raises(UserError, match=r"one\.png: no such file; toy needs its images"):
        BenchmarkSamples(TOY, data)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (({"id": "a", "answer": "3"},), r"no answer to 'b' \(1 missing\)"),
        (({"id": "a", "answer": "3"},) * 2, ":2: id 'a' is answered twice"),
        (({"id": "c", "answer": "3"},), ":1: id 'c' is not a question of the benchmark"),
        (({"id": "a"},), ":1: want a JSON object with id and answer"),
        (("a",), ":1: want a JSON object with id and answer"),
    ],
)
def test_invalid_predictions_are_errors(
    lines: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    path = write_predictions(tmp_path / "predictions.jsonl", *lines)
    with pytest.raises(UserError, match=message):
        read_answers(path, QUESTIONS)


def test_score_prints_json_and_a_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ({"id": "b", "answer": "five"}, {"id": "a", "answer": "3", "more": 1})
    path = write_predictions(data / "predictions.jsonl", *answers)
    args = ["toy", "--predictions", str(path), "--data", str(data)]
    assert score([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "easy": {"length": 1.0, "n": 1.0},
        "hard": {"length": 4.0, "n": 1.0},
    }
    assert score(args) == 0
    assert "4.0000" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown benchmark 'tay': did you mean 'toy'"):
        score(["tay", *args[1:]])


def test_evaluate_asks_and_scores_a_benchmark(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_run: Path
) -> None:
    args = ["--run", str(trained_run), "--data", str(data), "--max-new-tokens", "2"]
    output = tmp_path / "out"
    assert evaluate([*args, "--benchmark", "toy", "--output", str(output), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((output / "scores.json").read_text())
    assert (scores["benchmark"], scores["questions"]) == ("toy", 2)
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert scores["scores"]["hard"]["length"] == len(lines[1]["answer"])
    with pytest.raises(UserError, match="--data: 2 folders, want one for --benchmark"):
        evaluate([*args[:3], str(data), *args[3:], "--benchmark", "toy"])


def choice_metrics(answered: Sequence[Answered]) -> Metrics:
    points = [float(answer == question.answer) for question, answer in answered]
    return {"all": {"accuracy": mean_metric(points, [q.unit for q, _ in answered])}}


CHOICE = Benchmark(
    name="choice",
    read=lambda folder: [
        Question(
            id=name,
            split="all",
            text="Which digit?",
            answer="B",
            images=("one.png",),
            options=options,
        )
        for name, options in (("a", ("3", "5")), ("b", ("5", "3")), ("c", ()))
    ],
    metrics=choice_metrics,
    save=save_json("choice.json", lambda answered: {q.id: answer for q, answer in answered}),
    headlines=(Headline(column="SEED-I", value=percent("all", "accuracy")),),
)


def test_several_benchmarks_by_likelihood_and_under_the_surveys_table(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmarks, "BENCHMARKS", (TOY, CHOICE))
    output = tmp_path / "out"
    args = ["--run", str(trained_run), "--output", str(output), "--max-new-tokens", "2"]
    args += ["--data", str(data), str(data), "--benchmark", "toy", "choice"]
    assert evaluate([*args, "--choose", "likelihood"]) == 0
    shown = capsys.readouterr().out
    assert "Table 2 of the survey" in shown
    assert "LLaVA-1.5" in shown
    lines = (output / "choice" / "predictions.jsonl").read_text().splitlines()
    first, second, third = map(json.loads, lines)
    # The same two options in the other order: the same likelihoods, and so the other letter.
    assert first["option_scores"] == pytest.approx(second["option_scores"][::-1], abs=1e-4)
    assert {first["answer"], second["answer"]} == {"A", "B"}
    assert "option_scores" not in third
    scores = json.loads((output / "choice" / "scores.json").read_text())
    accuracy = scores["scores"]["all"]["accuracy"]
    assert scores["survey"] == {"SEED-I": pytest.approx(100 * accuracy)}
    low, high = scores["intervals"]["all"]["accuracy"]
    assert low <= accuracy <= high
    official = json.loads((output / "choice" / "official" / "choice.json").read_text())
    assert official == {"a": first["answer"], "b": second["answer"], "c": third["answer"]}
    with pytest.raises(UserError, match="--data: 3 folders, want one for each of 2 benchmarks"):
        evaluate([*args[:7], str(data), *args[7:]])


def test_missing_files_are_named_with_their_source(tmp_path: Path) -> None:
    message = (
        r"vsr lacks test\.jsonl \(https://github\.com/cambridgeltl/\S+ \S+\); images "
        r"\(https://cocodataset\.org/#download\)"
    )
    with pytest.raises(UserError, match=message):
        BenchmarkSamples(find_benchmark("vsr"), tmp_path)


def test_intervals_and_a_comparison_of_two_files(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "BENCHMARKS", (CHOICE,))
    ours = write_predictions(data / "a.jsonl", *({"id": i, "answer": "B"} for i in "abc"))
    theirs = write_predictions(data / "b.jsonl", *({"id": i, "answer": "A"} for i in "abc"))
    args = ["choice", "--predictions", str(ours), "--data", str(data), "--bootstrap", "20"]
    assert score([*args, "--against", str(theirs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "all": {"accuracy": 1.0},
        "intervals": {"all": {"accuracy": [1.0, 1.0]}},
        "differences": {
            "all": {"accuracy": {"value": 1, "low": 1, "high": 1, "p_value": pytest.approx(2 / 21)}}
        },
    }
    assert score([*args, "--against", str(theirs)]) == 0
    shown = capsys.readouterr().out
    assert "1.0000 [1.0000, 1.0000]" in shown
    assert "+1.0000" in shown
    assert "Table 2 of the survey" in shown
    # The folders of two evaluations.
    for name, path in (("run_a", ours), ("run_b", theirs)):
        (data / name).mkdir()
        (data / name / "predictions.jsonl").write_bytes(path.read_bytes())
    folders = ["--predictions", str(data / "run_a"), "--against", str(data / "run_b")]
    assert score(["choice", *folders, "--data", str(data), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["differences"]["all"]["accuracy"]["value"] == 1
    with pytest.raises(UserError, match="--bootstrap: -1, want at least 0"):
        score([*args[:-1], "-1"])
