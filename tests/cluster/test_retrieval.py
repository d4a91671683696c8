"""Retrieval on two ranks: the same as on one, and it goes on after a kill."""

import json
from pathlib import Path

import pytest

from tests.cluster.ranks import Ranks, run_ranks, wait_for
from tests.runs import random_pretraining_run, random_run
from tests.worlds import caption_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROWS = 12
FILES = ["retrieval.jsonl", "retrieval_blind.jsonl", "scores.json"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), ROWS)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ranks_share_a_ranking_by_likelihood_and_another_number_goes_on(
    captions: Path, tmp_path: Path
) -> None:
    run, whole, killed = (tmp_path / name for name in ("run", "whole", "killed"))
    random_run(run, "digits")
    words = ("evaluate", "--run", run, "--data", captions, "--retrieval", "--batch", 5, "--json")
    outcome = run_ranks(1, *words, "--output", whole)
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["retrieval"]["media"] == ROWS

    ranks = Ranks(2, (*words, "--output", killed))
    wait_for(killed / "retrieval.jsonl.1.partial", ranks)
    ranks.kill()
    ranks.wait()
    assert not (killed / "scores.json").exists()
    outcome = run_ranks(1, *words, "--output", killed)
    assert outcome.code == 0, outcome.stderr
    assert "resuming after" in outcome.stderr
    both = tmp_path / "both"
    outcome = run_ranks(2, *words, "--output", both)
    assert outcome.code == 0, outcome.stderr
    for folder in (killed, both):
        assert json.loads((folder / "scores.json").read_text()) == json.loads(
            (whole / "scores.json").read_text()
        )
        assert sorted(path.name for path in folder.iterdir()) == FILES
        for name in ("retrieval.jsonl", "retrieval_blind.jsonl"):
            for one, other in zip(lines(folder / name), lines(whole / name), strict=True):
                scores = other.pop("option_scores")
                assert one.pop("option_scores") == pytest.approx(scores, rel=1e-5)
                assert one == other


def test_ranks_share_a_ranking_by_contrastive_similarity(captions: Path, tmp_path: Path) -> None:
    """Three batches: one rank has one more than the other, and the last is smaller."""
    run = tmp_path / "run"
    random_pretraining_run(run)
    words = ("evaluate", "--run", run, "--data", captions, "--batch", 4, "--limit", 11, "--json")
    outcomes = [run_ranks(number, *words, "--output", tmp_path / str(number)) for number in (1, 2)]
    assert [one.code for one in outcomes] == [0, 0], outcomes[1].stderr
    expected, found = (json.loads(one.stdout)["retrieval"] for one in outcomes)
    assert found == expected
    assert (found["media"], found["skipped"]) == (11, 0)
