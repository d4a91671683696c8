"""Which start of a run has trained a step."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.presets import system
from pipeline.config.run_config import RunConfig
from pipeline.lineage.history import check_data, read_history
from tests.worlds import caption_shards

CONFIG = RunConfig(stage="pt", system=system("digits"), data=("data",), output="run")


def started(ranks: int, after: int, found: int, **settings: int) -> dict:
    return {
        "ranks": ranks,
        "from_step": after,
        "found": {"to_step": found, "ended": 0.0},
        "data": "d",
        "initial_weights": "pt/checkpoints/step-00000007/weights.safetensors",
        "settings": {"epochs": 1, "micro_batch": 4, "pack_media": 4, "recompute": False} | settings,
    }


def ended(step: int) -> dict:
    return {"ended": 1.0, "to_step": step, "outcome": "complete"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two ranks to step 20; one from 12, killed before a step and again; three from 12 to 30."""
    CONFIG.save(tmp_path)
    starts = [started(2, 0, 0), started(1, 12, 20), started(1, 12, 12), started(3, 12, 17)]
    starts[3]["settings"] |= {"epochs": 2, "micro_batch": 8}
    lines = [*starts[:3], starts[3], ended(30)]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [json.dumps({"step": step}) + "\n" for step in range(1, 31)]
    (tmp_path / "metrics.jsonl").write_text("".join(steps))
    return tmp_path


def test_each_step_belongs_to_the_last_start_that_trained_it(run: Path) -> None:
    history = read_history(run)
    assert [(part.steps, part.ranks) for part in history.parts] == [
        (range(1, 13), 2),
        (range(13, 31), 3),
    ]
    first, last = (part.run.settings for part in history.parts)
    assert (first.epochs, first.micro_batch, last.epochs, last.micro_batch) == (1, 4, 2, 8)
    assert asdict(replace(last, epochs=first.epochs, micro_batch=4)) == asdict(first)
    assert history.part(12).ranks == 2
    assert history.initial_weights == Path("pt/checkpoints/step-00000007/weights.safetensors")
    for step in (0, 31):
        with pytest.raises(UserError, match=f"--step {step}: .* has the steps 1 to 30"):
            history.part(step)


def test_steps_of_a_running_start_are_those_in_the_metrics(run: Path) -> None:
    lines = (run / "starts.jsonl").read_text().splitlines(keepends=True)
    (run / "starts.jsonl").write_text("".join(lines[:1]))
    assert [part.steps for part in read_history(run).parts] == [range(1, 31)]


def test_other_data_are_refused(run: Path, tmp_path: Path) -> None:
    shards = ShardSet([caption_shards(tmp_path / "data", 4)])
    config = replace(CONFIG, data=(str(tmp_path / "data"),))
    history = replace(read_history(run), run=config)
    with pytest.raises(UserError, match="no longer the shards"):
        check_data(history, shards)
    text = (
        (run / "starts.jsonl").read_text().replace('"data": "d"', f'"data": "{shards.fingerprint}"')
    )
    (run / "starts.jsonl").write_text(text)
    check_data(history, shards)
