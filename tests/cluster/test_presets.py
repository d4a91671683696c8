"""Published systems, tiny, train for real: MM-PT then SFT under ZeRO-3 on two ranks.

One for each wiring; the nightly tier has all of them. That each preset moves and saves exactly what
it should is shown without ranks in `tests/pipeline/test_presets_train.py`.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from model.presets import system
from tests.cluster.ranks import Ranks
from tests.pipeline.test_presets_train import IDLE, NAMES
from tests.worlds import preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WIRINGS = (
    "flamingo_3b",  # layers of gated cross-attention, two kinds through one encoder
    "cogvlm",  # experts in the backbone's layers; the whole backbone trains in SFT
    "instructblip_flan_t5_xl",  # encoder-decoder; a Q-Former that reads the instruction
    "x_llm",  # a prefix LM; kinds share an encoder, of which a part trains
    "next_gpt",  # spliced tokens of one encoder for many kinds, and LoRA
)
"""Each way in which media reach a backbone, and each kind of part that may train; `test_init` has
the reference of `dlp`."""

OTHERS = [name for name in NAMES if name not in WIRINGS]
PAIR_RUN = 4
"""Presets that one pair of ranks trains in a test of the nightly tier."""
GROUPS = [OTHERS[first : first + PAIR_RUN] for first in range(0, len(OTHERS), PAIR_RUN)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    preset_shards(folder)
    return folder


def train(world: Path, names: list[str]) -> None:
    outcome = Ranks(2, [world, *names], module="tests.cluster.presets_worker").wait(timeout=480)
    assert outcome.code == 0, outcome.stderr[-4000:]
    for name in names:
        for stage in ("pt", "sft"):
            check(world / "runs" / name, name, stage)


def check(run: Path, name: str, stage: str) -> None:
    """Exactly what should move has moved, that was saved, and the loss went down."""
    report = json.loads((run / f"{stage}.json").read_text())
    idle = [one for key, patterns in IDLE.items() if fnmatch(name, key) for one in patterns]
    should = {one for one in report["trainable"] if not any(fnmatch(one, each) for each in idle)}
    assert should, name
    # Weight decay may move what no gradient reaches.
    assert should <= set(report["moved"]) <= set(report["trainable"]), name
    # What an earlier stage has trained is kept, too, though it is frozen now.
    assert set(report["saved"]) >= set(report["trainable"]), name
    assert not report["saved_wrong"], name
    if system(name).stage(stage).reference is not None:
        # Beside the text's loss there is that of the reference, ten times as heavy.
        lines = (run / stage / "metrics.jsonl").read_text().splitlines()
        before, *_, after = (json.loads(line)["loss"] for line in lines)
    else:
        before, after = report["loss"]
    assert after < before, name


@pytest.mark.parametrize("name", WIRINGS)
def test_each_wiring_trains_on_two_ranks(name: str, world: Path) -> None:
    train(world, [name])


@pytest.mark.nightly(minutes=2)
@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_every_preset_trains_on_two_ranks(names: list[str], world: Path) -> None:
    train(world, names)
