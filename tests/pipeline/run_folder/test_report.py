"""The page of a run: what it was, its metrics, and its evaluation at the end."""

import json
import sys
from pathlib import Path

import pytest

from etl.cli import UserError
from model.presets import system
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig
from pipeline.run_folder.metrics_writer import write_forecast
from pipeline.run_folder.report import run_report
from pipeline.run_folder.starts import record_end, record_start
from tests.pages import Page

NASTY = '<script>alert("x")</script> & "quoted"'


def metrics(steps):
    return [
        {
            "step": step,
            "samples": 8 * step,
            "tokens": 100 * step,
            "loss": 4.0 / step,
            "losses": {"text": 4.0 / step},
            "lr": 0.001 / step,
            "grad_norm": 1.5 / step,
            "step_seconds": 0.5,
            "tokens_per_second": 199.0 if step % 2 else 201.0,
            "padding_share": 0.1 / step,
            "data_wait_share": 0.0,
        }
        for step in range(1, steps + 1)
    ]


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def report(run, entries=()):
    if entries:
        write_lines(run / "metrics.jsonl", entries)
    return Page(run_report(run).read_text())


def test_a_run_is_reported_from_its_metrics(tmp_path):
    lines = [json.dumps(entry) for entry in metrics(30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 31, "lo')
    page = report(tmp_path)
    assert page.count("svg", role="img") == 5
    summary = page.facts
    assert summary["steps"] == "30"
    assert summary["samples"] == "240"
    assert summary["tokens"] == "3,000"
    assert summary["first loss"] == "4"
    assert summary["tokens per second"] == "200"
    assert summary["time in steps"] == "0:00:15"


def test_a_runs_page_shows_every_recorded_metric(tmp_path):
    entries = [
        entry
        | {
            "sources": {
                "captions": {"samples": 6, "tokens": 75, "targets": 9, "loss": 2.0},
                NASTY: {"samples": 2, "tokens": 25, "targets": 0, "loss": entry["loss"]},
            },
            "memory_bytes": [2**30, 2**31],
            "imbalance": {"encoders": 1.5, "backbone": 1.1},
            "mfu": 0.4,
            "lr_by_group": {"stage": entry["lr"] / 2, "inputs.image.encoder.*": entry["lr"]},
            "phase_seconds": {"data": 0.1, "forward": 0.4},
        }
        for entry in metrics(4)
    ]
    row = {"quantity": "time per step", "forecast": 1.5, "actual": None, "unit": "s"}
    write_forecast(tmp_path, [row], ["A note."])
    page = report(tmp_path, entries)
    charts = {
        "Loss": ["text"],
        "Loss by source": ["captions", NASTY],
        "Learning rate by part": ["stage", "inputs.image.encoder.*"],
        "Gradient norm before clipping": ["norm"],
        "Tokens per second, all ranks": ["tokens"],
        "Time per phase of a step, rank 0": ["data", "forward"],
        "Padding share of positions": ["padding"],
        "Peak memory of a rank": ["highest", "lowest"],
        "FLOPs of the busiest rank / mean of all ranks": ["encoders", "backbone"],
    }
    assert page.count("svg") == len(charts)
    assert page.count("span") == sum(len(names) for names in charts.values() if len(names) > 1)
    assert {*charts, "captions", "24", "300", "0.75", "time per step", "A note."} <= {*page.texts}
    assert page.facts["Model FLOPs utilization"] == "40.0%"
    assert page.count("script") == 0


def test_a_runs_page_shows_its_validations(tmp_path):
    shared = {"samples": 20, "bad": 1, "data": "d", "seconds": 1.0}
    validations = [
        shared
        | {
            "step": step,
            "loss": loss,
            "losses": {"text": loss},
            "accuracy": step / 8,
            "blind": {"samples": 20, "loss": 3.0, "accuracy": 0.0},
        }
        for step, loss in ((0, 4.0), (2, None), (4, 1.5), (6, 2.5))
    ]
    write_lines(tmp_path / "validation.jsonl", validations)
    page = report(tmp_path, metrics(6))
    facts = page.facts
    assert (facts["lowest loss"], facts["after step"], facts["last loss"]) == ("1.5", "4", "2.5")
    assert facts["skipped"] == "1"
    assert {"Loss on held-out samples", "Exact answers", "with media", "blind"} <= {*page.texts}
    assert "Loss on held-out samples, of chosen answers" not in page.texts
    for one in validations:  # RLHF
        one["losses"] = {"dpo": one["loss"], "chosen": 3.5}
    write_lines(tmp_path / "validation.jsonl", validations)
    titles = {"Loss on held-out samples", "Loss on held-out samples, of chosen answers"}
    assert titles <= {*report(tmp_path).texts}
    for one in validations:  # a stage before MM-PT
        del one["blind"], one["accuracy"]
        one["losses"] = {"contrast": one["loss"]}
    write_lines(tmp_path / "validation.jsonl", validations)
    page = report(tmp_path)
    assert "Loss on held-out samples" in page.texts
    assert "Exact answers" not in page.texts


def test_no_chart_repeats_another_or_shows_one_number(tmp_path):
    source = {"captions": {"samples": 8, "tokens": 100, "targets": 9, "loss": 2.0}}
    more = {"sources": source, "memory_bytes": [2**30], "lr": 0.002, "padding_share": 0.0}
    page = report(tmp_path, [entry | more for entry in metrics(4)])
    assert page.count("svg") == 3  # loss, gradient norm and speed
    assert "Loss by source" not in page.texts
    numbers = page.facts
    assert numbers["Learning rate"] == "0.002"
    assert numbers["Padding share of positions"] == "0"
    assert numbers["Peak memory of a rank"] == "1 GiB"


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_value_leaves_a_gap(tmp_path, value):
    entries = metrics(10)
    entries[4].update(loss=value, losses={"text": value}, grad_norm=value)
    write_lines(tmp_path / "metrics.jsonl", entries)
    assert "nan" not in run_report(tmp_path).read_text().lower()


def test_the_page_begins_with_what_the_run_was(tmp_path, monkeypatch):
    command = ["/bin/python", "-m", "pipeline", "pt", "digits", "--local_rank=0"]
    monkeypatch.setattr(sys, "orig_argv", command)
    mix = Mix(shares=("dialogues=2",), temperature=2, cap=3)
    data = ("data/captions", "data/dialogues")
    preset = system("digits")
    run = RunConfig(stage="pt", system=preset, data=data, output="", max_steps=9, mix=mix)
    run.save(tmp_path)
    record_start(tmp_path, ranks=2, from_step=0, parameters=(25, 200), lineage={})
    for step in (4, 8):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    write_lines(tmp_path / "metrics.jsonl", metrics(8))
    record_end(tmp_path, "stopped on request")
    page = report(tmp_path)
    headings = [text for text in page.texts if text in ("What it was", "Starts and stops", "Loss")]
    assert headings[:3] == ["What it was", "Starts and stops", "Loss"]
    told = page.facts
    assert told["preset"].startswith("digits")
    assert told["stage"] == "pt: MM-PT"
    assert told["data"] == "data/captions, data/dialogues"
    assert told["mix"] == "dialogues=2, temperature 2, a sample at most 3 times"
    assert told["epochs"] == f"{preset.pt.epochs}, at most 9 steps"
    assert f"{preset.pt.learning_rate:g}" in told["learning rate"]
    assert told["batch"].startswith(f"{preset.pt.global_batch} samples per step")
    assert told["parameters trained"] == "25 of 200 (12.50%)"
    assert told["command"] == "python -m pipeline pt digits"
    assert told["code"].partition(" ")[0] in ("commit", "version")
    assert told["checkpoints"] == "of step 4, 8"
    assert "stopped on request" in page.texts


def test_skipped_samples_are_counted_by_reason(tmp_path):
    def bad(step, reason):
        return {"step": step, "position": step, "row": step, "id": f"web-{step}", "reason": reason}

    reasons = [f"sample web-{step}: {NASTY}" for step in range(30)]
    write_lines(tmp_path / "bad_samples.jsonl", [bad(*each) for each in enumerate(reasons)])
    with (tmp_path / "bad_samples.jsonl").open("a") as stream:
        stream.write(json.dumps(bad(30, "too long")) + "\n")
    page = report(tmp_path, metrics(2))
    assert "Skipped samples: 31" in page.texts
    assert page.facts["skipped samples"] == "31"
    assert {"too long: 1", f"{NASTY}: 30", "web-30"} <= set(page.texts)
    assert "web-3" not in page.texts  # the last twenty are shown


def test_cut_samples_are_shown(tmp_path):
    reason = f"audio of 41.2 s {NASTY}"
    lines = [{"step": step, "id": f"web-{step}", "reason": reason} for step in range(30)]
    write_lines(tmp_path / "cut_samples.jsonl", lines)
    page = report(tmp_path, metrics(2))
    assert "Samples with media longer than the encoder takes: 30" in page.texts
    assert {reason, "web-29"} <= set(page.texts)
    assert "web-3" not in page.texts  # the last twenty are shown


def write_evaluation(folder: Path) -> None:
    kinds = {
        kind: {"questions": 2, "accuracy": 0.5, "blind": 0.25, "chance": 0.125} for kind in "ab"
    }
    scores = {"questions": 4, "accuracy": 0.5, "blind": 0.25, "chance": 0.125, "kinds": kinds}
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    media = [{"kind": "audio", "text": "a tone", "uri": "data:audio/wav;base64,AA", "sharp": False}]
    card = {"media": media, "text": NASTY, "answer": "seven", "details": [], "correct": True}
    content = {"source": "step-00000040 on questions", "cards": [card]}
    (folder / "examples.json").write_text(json.dumps(content))


def test_the_page_ends_with_the_evaluation(tmp_path):
    write_evaluation(tmp_path / "evaluation")
    page = report(tmp_path, metrics(3))
    assert page.facts["with media"] == "50.0%"
    assert page.count("audio", src="data:audio/wav;base64,AA") == 1
    assert page.texts.index("✓ seven") > page.texts.index("Loss")
    assert page.count("script") == 0


def test_an_evaluation_elsewhere_has_a_page_there(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "metrics.jsonl", metrics(3))
    write_evaluation(tmp_path / "scores")
    page = run_report(run, tmp_path / "scores")
    assert page == tmp_path / "scores" / "report.html"
    assert {"Loss", "✓ seven"} <= set(Page(page.read_text()).texts)
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_an_imported_run_may_have_an_evaluation_alone(tmp_path):
    write_evaluation(tmp_path / "evaluation")
    page = report(tmp_path)
    assert page.count("svg") == 0
    assert "✓ seven" in page.texts


def test_a_benchmark_has_its_own_scores(tmp_path):
    write_evaluation(tmp_path / "evaluation")
    scores = {"benchmark": "pope", "questions": 3, "scores": {"random": {"f1": 0.75}}}
    scores |= {"blind": {"random": {"f1": 0.5, "yes": 1.0}}}
    (tmp_path / "evaluation" / "scores.json").write_text(json.dumps(scores))
    page = report(tmp_path)
    assert {"Evaluation: pope, 3 questions", "random", "f1", "0.75", "yes"} <= set(page.texts)


def test_a_folder_without_metrics_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        run_report(tmp_path)
    assert not list(tmp_path.iterdir())
