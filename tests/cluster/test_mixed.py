"""Ranks with other media than their neighbours: nobody waits for ever, and the curve is one."""

import json
import math
from pathlib import Path

import pytest

from etl.schema import Sample
from etl.shards import ShardSet, write_folder
from tests.cluster.ranks import Ranks, losses
from tests.worlds import preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 200
KINDS = ("image", "video", "audio", "points", "text")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pairs of every kind, texts, and dialogues with several pictures."""
    folder = tmp_path_factory.mktemp("world")
    preset_shards(folder)
    pictures = ShardSet([folder / "image" / "pt"])
    several = [_joined([pictures[first + number] for number in range(3)]) for first in range(12)]
    write_folder(folder / "several", several, job="several")
    return [*(folder / kind / "pt" for kind in KINDS), folder / "several"]


def _joined(samples: list[Sample]) -> Sample:
    """Make one sample of several pictures and their captions."""
    turns = tuple(turn for sample in samples for turn in sample.turns)
    media = tuple(medium for sample in samples for medium in sample.media)
    return Sample(id=f"several-{samples[0].id}", source="several", turns=turns, media=media)


@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_any_media_in_any_split_over_ranks(zero: str, world: list[Path], tmp_path: Path) -> None:
    """Five samples a step over two and over four ranks: some always lack what others have."""
    curves = []
    for ranks in (2, 4):
        run = tmp_path / str(ranks)
        words = ["pt", "digits_omni", "--scale", "tiny", "--data", *world, "--output", run]
        words += ["--global-batch", 5, "--micro-batch", 2, "--max-steps", STEPS, "--epochs", 9]
        words += ["--set", "pt.max_tokens=256", "--learning-rate", 1e-3, "--ds-config", zero]
        words += ["--save-every", STEPS, "--stall-seconds", 120]
        outcome = Ranks(ranks, words).wait(timeout=440)
        assert outcome.code == 0, outcome.stderr
        curves.append(losses(run))
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["samples"] == 5 * STEPS
        assert not (run / "bad_samples.jsonl").exists()
    assert len(curves[0]) == STEPS
    assert all(map(math.isfinite, curves[0]))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
