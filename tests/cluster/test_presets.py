"""Every published system, tiny, trains for real: MM-PT then SFT under ZeRO-3 on two ranks."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from model.presets import PRESETS, system
from tests.cluster.ranks import Ranks
from tests.worlds import preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

IDLE = {
    # The text half of the last layer: nothing reads the text's states behind it.
    "instructblip*": "*.bert.encoder.layer.1.*put.*|*.bert.encoder.layer.1.intermediate.*",
    # There, and where queries look at the one token of a cloud: one weight, which is 1.
    "x_instructblip": (
        "*.bert.encoder.layer.1.*put.*|*.bert.encoder.layer.1.intermediate.*"
        "|inputs.points.*.crossattention.attention.key.*"
        "|inputs.points.*.crossattention.attention.query.*"
    ),
}
"""Preset → what trains in the published systems, too, though no gradient ever reaches it."""

NAMES = [name for name in PRESETS if not name.startswith("digits")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    preset_shards(folder)
    ranks = Ranks(2, [folder, *NAMES], module="tests.cluster.presets_worker")
    outcome = ranks.wait(timeout=1000)
    assert outcome.code == 0, outcome.stderr[-4000:]
    return folder / "runs"


@pytest.mark.parametrize("stage", ["pt", "sft"])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_should_move_moves(runs: Path, name: str, stage: str) -> None:
    report = json.loads((runs / name / f"{stage}.json").read_text())
    assert report["trainable"]
    idle = [
        pattern
        for key, all_of in IDLE.items()
        if fnmatch(name, key)
        for pattern in all_of.split("|")
    ]
    should = [
        one for one in report["trainable"] if not any(fnmatch(one, pattern) for pattern in idle)
    ]
    assert should
    assert set(should) <= set(report["moved"]) <= set(report["trainable"])
    # What an earlier stage has trained is kept, too, though it is frozen now.
    assert set(report["saved"]) >= set(report["trainable"])
    assert not report["saved_wrong"]


@pytest.mark.parametrize("stage", ["pt", "sft"])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_goes_down(runs: Path, name: str, stage: str) -> None:
    if system(name).stage(stage).reference is not None:
        # Beside the text's loss there is that of the reference, ten times as heavy.
        lines = (runs / name / stage / "metrics.jsonl").read_text().splitlines()
        before, *_, after = (json.loads(line)["loss"] for line in lines)
    else:
        before, after = json.loads((runs / name / f"{stage}.json").read_text())["loss"]
    assert after < before
