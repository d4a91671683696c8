"""A contest through its command: killed, gone on with, and said to be complete."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import run as run_pipeline
from pipeline.evaluate.metrics import SEED
from pipeline.feature_cache.feature_file import FeatureFile
from tests.cluster.ray_cluster import marked
from tests.cluster.warm import REPOSITORY
from tests.worlds import instruct_shards, question_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STEPS, QUESTIONS, ROWS = 40, 30, 80
VARIANT = "projector-mlp"
VARY = 'model.inputs.image.projector={"kind": "mlp", "depth": 3}'
"""As many tokens for a picture as the preset's, so that equal steps have equally many."""


@pytest.mark.nightly(minutes=5)
def test_variants_are_trained_alike_and_compared_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "contest"
    dialogues = instruct_shards(tmp_path / "dialogues", ROWS)
    questions = question_shards(tmp_path / "questions", QUESTIONS)
    words = ["digits", "--stage", "sft", "--data", dialogues, "--questions", questions]
    words += ["--output", output, "--vary", VARY, "--ranks", 2, "--max-steps", STEPS]
    words += ["--epochs", 2, "--global-batch", 4, "--micro-batch", 2, "--save-every", 5, "--json"]

    kill_in_training(words, output / "base")
    result, said = contest(words)
    assert f"resuming from {output}/base/checkpoints/step-" in said
    runs = {name: output / name for name in ("base", VARIANT)}
    metrics = {name: read_lines(run / "metrics.jsonl") for name, run in runs.items()}
    same_samples(runs, metrics, capsys)
    encoded_once(output, said)

    differences = {(one["of"], one["score"]): one for one in result["differences"]}
    losses = [[step["losses"]["text"] for step in metrics[name]] for name in (VARIANT, "base")]
    last = [values[-STEPS // 4 :] for values in losses]
    answers = [read_lines(runs[name] / "evaluation/predictions.jsonl") for name in runs][::-1]
    assert [one["id"] for one in answers[0]] == [one["id"] for one in answers[1]]
    exact = [[float(one["correct"]) for one in lines] for lines in answers]
    ids = [one["id"] for one in answers[0]]
    for key, (ours, theirs), units in (
        (("all steps", "text"), losses, blocks(STEPS, 3)),
        (("last quarter of steps", "text"), last, blocks(STEPS // 4, 2)),
        (("questions", "exact answers"), exact, ids),
    ):
        one = differences.pop(key)
        assert (one["variant"], one["against"]) == (VARIANT, "base")
        *expected, p_value = paired_difference(ours, theirs, units)
        found = [one[name] for name in ("value", "low", "high")]
        assert found == pytest.approx(expected, abs=1e-9)
        assert one["p_value"] == pytest.approx(p_value, abs=0.01)  # 0 may be 1e-17
    assert not differences
    assert {tuple(one["settings"]) for one in result["variants"]} == {(), (VARY,)}
    assert (output / "report.html").is_file()

    again, said = contest(words)
    assert again == result == json.loads((output / "contest.json").read_text())
    for run in runs.values():
        assert f"already complete: {run} (step {STEPS} of {STEPS})" in said


def contest(words: Sequence[object]) -> tuple[dict[str, Any], str]:
    """Run a contest; return what it prints, and what it and its commands say."""
    done = subprocess.run(
        command(words), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def kill_in_training(words: Sequence[object], run: Path) -> None:
    """Kill a contest and all that it has started once a run has a checkpoint."""
    with marked(dict(os.environ)) as env:
        process = subprocess.Popen(
            command(words),
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while not (run / "checkpoints" / "latest").is_file():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
                raise AssertionError(process.communicate()[1])
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(read_lines(run / "metrics.jsonl")) < STEPS


def command(words: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "pipeline", "contest", *map(str, words)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def same_samples(
    runs: dict[str, Path],
    metrics: dict[str, list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the plan that training has used, and by what it has counted in each step."""
    counted = [[(one["samples"], one["tokens"]) for one in metrics[name]] for name in runs]
    assert counted[0] == counted[1]
    assert counted[0][-1][0] == 4 * STEPS
    for step in (1, 17, STEPS):
        traced = []
        for run in runs.values():
            run_pipeline(["trace", "--run", str(run), "--step", str(step), "--json"])
            found = json.loads(capsys.readouterr().out)
            traced.append([(one["rank"], one["micro_step"], one["id"]) for one in found["samples"]])
        assert traced[0] == traced[1]
        assert len({name for _, _, name in traced[0]}) == 4


def encoded_once(output: Path, said: str) -> None:
    """Every picture is in the cache once, and all runs read it from there."""
    files = [FeatureFile(path) for path in output.glob("features/*/part-*.arrow")]
    keys = [file.key(row) for file in files for row in range(len(file))]
    assert len(keys) == len({*keys}) == ROWS
    assert said.count("-m pipeline features ") == 1
    assert said.count(f"features of image: {ROWS} from {output}/features") == 2


def blocks(steps: int, length: int) -> list[str]:
    return [str(step // length) for step in range(steps)]


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], units: Sequence[str]
) -> list[float]:
    """Return the mean difference, its interval and p-value, with whole units resampled."""
    difference = np.array(ours) - np.array(theirs)
    rows = [np.flatnonzero(np.array(units) == name) for name in sorted({*units})]
    draw = np.random.default_rng(SEED)
    means = []
    for _ in range(1000):
        resampled = draw.integers(0, len(rows), len(rows))
        means.append(difference[np.concatenate([rows[number] for number in resampled])].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    rarer = min(np.sum(np.array(means) <= 0), np.sum(np.array(means) >= 0))
    return [difference.mean(), low, high, min(1.0, 2 * (rarer + 1) / 1001)]
