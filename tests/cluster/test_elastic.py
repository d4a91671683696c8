"""Runs that go on with another number of ranks, as if nothing had happened."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from etl.storage.shards import write_folder
from tests.cluster.ranks import Ranks, losses, run_ranks
from tests.worlds import instruct_shards, text_sample

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 12
STOPS = (2, 5, 8)
"""The steps after which a run goes on with the next number of ranks."""
SMALL = ("--global-batch", 8, "--micro-batch", 2, "--max-steps", STEPS, "--save-every", 100)
CLOSE = {"fp32": 1e-5, "bf16": 2**-8}
"""Other ranks sum the same gradients in another order; bf16 keeps eight bits of each sum."""
PROJECTOR = {
    "pattern": "inputs.image.projector.*",
    "learning_rate": 1e-3,
    "weight_decay": 0.2,
    "betas": [0.9, 0.98],
    "schedule": "wsd",
    "decay": 0.25,
    "warmup": 0.5,
}
GROUPS = (
    *("--set", "sft.peft.learning_rate=5e-4", "--set", "sft.weight_decay=0.1"),
    *("--set", f"sft.groups={json.dumps([PROJECTOR])}"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Dialogues about pictures, and some without; a fifth of what is drawn is of the latter."""
    folder = tmp_path_factory.mktemp("data")
    text = write_folder(folder / "text", [text_sample(0, n) for n in range(9)], job="text")
    return instruct_shards(folder / "dialogues", 30), text


@pytest.mark.parametrize(
    ("zero", "precision", "numbers"),
    [
        ("zero2", "fp32", (2, 1)),
        ("zero3", "fp32", (2, 1, 4, 2)),
        pytest.param("zero3", "bf16", (2, 1, 4, 2), marks=pytest.mark.nightly(minutes=2)),
        pytest.param("zero2", "fp32", (2, 1, 4, 2), marks=pytest.mark.nightly(minutes=2)),
    ],
)
def test_the_curve_is_the_uninterrupted_one(
    zero: str, precision: str, numbers: tuple[int, ...], data: tuple[Path, Path], tmp_path: Path
) -> None:
    """PackedLayout, mixed, over three epochs; a single rank has a worker, which reads ahead.

    Adapters and projector learn at rates and on schedules of their own; matrices decay and vectors
    do not.
    """
    words = (
        "sft",
        "digits",
        "--scale",
        "tiny",
        "--data",
        *data,
        "--mix",
        "text=20%",
        *SMALL,
        *GROUPS,
    )
    words = (*words, "--epochs", 3, "--ds-config", zero, "--precision", precision)
    outcome = run_ranks(2, *words, "--output", tmp_path / "whole")
    assert outcome.code == 0, outcome.stderr
    run = tmp_path / "run"
    for turn, ranks in enumerate(numbers):
        last = turn == len(numbers) - 1
        processes = Ranks(ranks, (*words, "--output", run, "--num-workers", int(ranks == 1)))
        if not last:
            stop_after(STOPS[turn], run, processes)
        outcome = processes.wait()
        assert outcome.code == (0 if last else 75), outcome.stderr
        if turn:
            assert f"written by {numbers[turn - 1]} ranks, resharded to {ranks}" in outcome.stderr
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=CLOSE[precision])
    assert samples(run) == [8 * step for step in range(1, STEPS + 1)]
    assert rates(run) == rates(tmp_path / "whole")
    peaks = {name: max(rate[name] for rate in rates(run)) for name in rates(run)[0]}
    assert peaks == {"inputs.image.projector.*": 1e-3, "peft": 5e-4}


def stop_after(steps: int, run: Path, ranks: Ranks) -> None:
    """Ask for a stop once so many steps are in the records."""
    while len(_lines(run)) < steps:
        try:
            ranks.processes[0].wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(ranks.wait().stderr)
    ranks.processes[0].send_signal(signal.SIGTERM)


def samples(run: Path) -> list[int]:
    return [json.loads(line)["samples"] for line in _lines(run)]


def rates(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["lr_by_group"] for line in _lines(run)]


def _lines(run: Path) -> list[str]:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.is_file() else []
