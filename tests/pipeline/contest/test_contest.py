"""A contest from the command to its page, with real training; it resumes after a variant."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.contest.contest import contest
from pipeline.run_folder.metrics_writer import read_metrics
from tests.pages import Page
from tests.worlds import caption_shards, question_shards

STEPS, QUESTIONS = 20, 12


@pytest.mark.nightly
def test_two_variants_are_trained_alike_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = caption_shards(tmp_path / "captions", 4 * STEPS)
    questions = question_shards(tmp_path / "questions", QUESTIONS)
    output = tmp_path / "contest"
    words = ["digits", "--scale", "tiny", "--data", captions, "--questions", questions]
    words += ["--output", output, "--global-batch", 4, "--micro-batch", 4, "--max-steps", STEPS]
    words += ["--save-every", 100, "--resamples", 200, "--json"]
    words += ["--vary", "deep:model.inputs.image.projector.depth=3", "same:pt.warmup=0"]
    words += ["--set", "pt.warmup=0"]
    assert contest(list(map(str, words))) == 0
    found = json.loads((output / "contest.json").read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{\n") :]) == found
    check(found, output)

    # Without a variant's run, the same command trains this one alone.
    deep = (output / "deep" / "metrics.jsonl").read_bytes()
    shutil.rmtree(output / "same")
    assert contest(list(map(str, words))) == 0
    again = json.loads((output / "contest.json").read_text())
    assert (output / "deep" / "metrics.jsonl").read_bytes() == deep
    assert again["differences"] == found["differences"]


def check(found: dict, output: Path) -> None:
    variants = {one["name"]: one for one in found["variants"]}
    assert list(variants) == ["base", "deep", "same"]
    assert {(one["steps"], one["samples"]) for one in variants.values()} == {(STEPS, 4 * STEPS)}
    assert variants["deep"]["trainable"] > variants["base"]["trainable"]
    by_score = {(one["variant"], one["of"], one["score"]): one for one in found["differences"]}
    assert set(by_score) == {
        (variant, of, score)
        for variant in ("deep", "same")
        for of, score in (("all steps", "text"), ("questions", "exact answers"))
    }  # the last quarter has too few steps for an interval
    base, deep = (
        [entry["losses"]["text"] for entry in read_metrics(output / name)]
        for name in ("base", "deep")
    )
    one = by_score["deep", "all steps", "text"]
    paired = [theirs - ours for theirs, ours in zip(deep, base, strict=True)]
    assert one["value"] == pytest.approx(sum(paired) / STEPS)
    assert one["low"] < one["value"] < one["high"]
    # A variant of the same settings has the same losses, to the bit.
    same = by_score["same", "all steps", "text"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    text = (output / "report.html").read_text()
    assert "deep − base" in text
    Page(text)
