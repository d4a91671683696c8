"""Paired differences of runs, from the files in their folders."""

import json
from pathlib import Path

import numpy as np
import pytest

from etl.cli import UserError
from pipeline.contest.compare import (
    ANSWERS,
    EXACT,
    LAST_STEPS,
    PairedDifference,
    Result,
    compare,
    read_result,
    read_scores,
)
from pipeline.contest.report import contest_tables, write_contest_page
from tests.pages import Page

STEPS, QUESTIONS = 64, 40
NOISE = np.random.default_rng(0).normal(0, 1, STEPS)


def run_folder(path: Path, gain: float, right: int, samples: int = 8) -> Path:
    """Write a run whose loss has the same noise in every step, `gain` better in the second half."""
    (path / "evaluation").mkdir(parents=True)
    entries = []
    for step in range(1, STEPS + 1):
        loss = 5 + NOISE[step - 1] - gain * (step > STEPS // 2)
        numbers = {"step": step, "samples": samples * step, "step_seconds": 0.5}
        entries.append({**numbers, "loss": loss, "losses": {"text": loss}})
    _write(path / "metrics.jsonl", entries)
    start = {"from_step": 0, "parameters": [25, 200], "found": {"to_step": 0, "ended": None}}
    _write(path / "starts.jsonl", [start])
    answers = [{"id": str(n), "correct": n < right} for n in range(QUESTIONS)]
    _write(path / "evaluation" / "predictions.jsonl", answers)
    blind = [{"id": str(n), "correct": n < 4} for n in range(QUESTIONS)]
    _write(path / "evaluation" / "predictions_blind.jsonl", blind)
    return path


def _write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def contest(*runs: Path) -> tuple[list[Result], list[PairedDifference]]:
    scores = [read_scores(run, answered=True) for run in runs]
    results = [read_result(run.name, [], run, one) for run, one in zip(runs, scores, strict=True)]
    return results, compare(results, scores, resamples=200)


def test_noise_that_variants_share_does_not_count(tmp_path: Path) -> None:
    """The standard error of a mean of the losses is 0.13; their difference is known exactly."""
    base = run_folder(tmp_path / "base", 0.0, right=10)
    results, found = contest(base, run_folder(tmp_path / "better", 0.05, right=18))
    by_score = {(one.of, one.score): one for one in found}
    assert len(by_score) == 3
    last = by_score[LAST_STEPS, "text"]
    assert (last.value, last.low, last.high) == pytest.approx((-0.05, -0.05, -0.05))
    assert last.p_value < 0.02
    whole = by_score["all steps", "text"]
    assert -0.05 < whole.low < whole.value == pytest.approx(-0.025)
    answers = by_score[ANSWERS, EXACT]
    assert (answers.variant, answers.against) == ("better", "base")
    assert answers.value == pytest.approx(8 / QUESTIONS)
    assert 0 < answers.low < answers.value < answers.high
    assert results[0].blind == pytest.approx(4 / QUESTIONS)
    assert (results[0].trainable, results[0].parameters) == (25, 200)


def test_too_few_steps_give_no_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [run_folder(tmp_path / name, 0.1, right=1) for name in ("base", "a")]
    for run in runs:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:16]))
    _, found = contest(*runs)
    assert {one.of for one in found} == {"all steps", ANSWERS}
    assert "last quarter of steps: too few for an interval (2 blocks" in caplog.text


def test_runs_on_other_samples_are_not_compared(tmp_path: Path) -> None:
    base = run_folder(tmp_path / "base", 0.0, right=10)
    with pytest.raises(UserError, match=r"448 samples in 64 steps, .*base has 512 in 64"):
        contest(base, run_folder(tmp_path / "other", 0.0, right=10, samples=7))


def test_tables_and_page_have_all_variants(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path / name, 0.1 * n, right=n) for n, name in enumerate(("base", "a", "b"))
    ]
    results, differences = contest(*runs)
    variants, paired = contest_tables(results, differences)
    assert (variants.row_count, paired.row_count) == (3, 6)
    write_contest_page(tmp_path / "report.html", results, differences)
    text = (tmp_path / "report.html").read_text()
    assert all(words in text for words in ("b − base", "Loss: text, minus that of base"))
    Page(text)
