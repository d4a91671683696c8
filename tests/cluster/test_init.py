"""The stages before MM-PT for real: ZeRO-3 on two ranks, and MM-PT starts from what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.build import build
from model.presets import system
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.checkpoint.files import APART
from tests.cluster.ranks import Ranks, run_ranks
from tests.worlds import caption_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STEPS = 16


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 64)


def train(run: Path, captions: Path, *words: object) -> Path:
    steps = ("--max-steps", STEPS, "--save-every", STEPS)
    outcome = run_ranks(2, *words, "--scale", "tiny", "--data", captions, "--output", run, *steps)
    assert outcome.code == 0, outcome.stderr[-4000:]
    return run


@pytest.fixture(scope="module")
def sentences(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "sentences"
    return train(run, captions, "init", "dlp", "--part", "pformer")


@pytest.fixture(scope="module")
def image_text(captions: Path, sentences: Path) -> Path:
    words = ("init", "dlp", "--part", "qformer", "--init-from", sentences)
    return train(sentences.parent / "image_text", captions, *words)


@pytest.fixture(scope="module")
def pt(captions: Path, image_text: Path) -> Path:
    return train(image_text.parent / "pt", captions, "pt", "dlp", "--init-from", image_text)


def curves(run: Path) -> dict[str, list[float]]:
    """Return each loss over the steps; `loss` is the one that is minimised."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(entries) == STEPS
    named = {name: [entry["losses"][name] for entry in entries] for name in entries[0]["losses"]}
    return {"loss": [entry["loss"] for entry in entries], **named}


def falls(values: list[float]) -> bool:
    return sum(values[-4:]) < sum(values[:4])


def test_a_p_former_learns_from_sentences_alone(sentences: Path) -> None:
    found = curves(sentences)
    assert set(found) == {"loss", "contrast", "vq", "text"}
    assert falls(found["loss"])
    weights = newest_weights(sentences)
    assert {name.split(".")[0] for name in load_file(weights)} == {"reference"}
    assert {name.split(".")[1] for name in load_file(weights.with_name(APART))} == {
        "sentences",
        "temperature",
    }


def test_a_q_former_learns_from_pairs_beside_it(image_text: Path) -> None:
    found = curves(image_text)
    assert set(found) == {"loss", "itc", "itm", "itg", "align"}
    assert all(falls(found[name]) for name in ("loss", "itc", "itg", "align"))
    mean = [a + b + c + 10 * d for a, b, c, d in zip(*list(found.values())[1:], strict=True)]
    assert mean == pytest.approx(found["loss"])
    apart = load_file(newest_weights(image_text).with_name(APART))
    assert any(".words." in name for name in apart)
    assert any(name.startswith("heads.match") for name in apart)


def test_mm_pt_takes_what_they_leave(sentences: Path, image_text: Path, pt: Path) -> None:
    assert set(curves(pt)) == {"loss", "text", "align"}
    assert falls(curves(pt)["loss"])
    former, last = load_file(newest_weights(sentences)), load_file(newest_weights(pt))
    assert all(torch.equal(last[name], tensor) for name, tensor in former.items())
    whole = system("dlp").tiny()
    own = {name for name, _ in build(whole.model, whole.pt, weights="random").named_parameters()}
    given = load_file(newest_weights(image_text))
    assert given.keys() <= own
    assert own - given.keys() <= {name for name in own if name.startswith(("inputs.", "backbone."))}
    projector = {name for name in own if name.startswith("inputs.image.projector.")}
    assert projector <= given.keys()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("init", "digits"), "digits has no stage before MM-PT"),
        (("init", "dlp"), "dlp pre-trains pformer, then qformer; choose one with --part"),
        (("init", "dlp", "--part", "pformr"), "did you mean 'pformer'?"),
    ],
)
def test_a_stage_that_there_is_not_is_one_line(
    words: tuple[str, ...], says: str, captions: Path, tmp_path: Path
) -> None:
    outcome = run_ranks(1, *words, "--data", captions, "--output", tmp_path / "run")
    assert outcome.code == 2
    assert says in outcome.stderr.splitlines()[-1]


def test_two_ranks_compare_all_pairs_and_share_the_gradient(tmp_path: Path) -> None:
    """The losses and gradients of two ranks, each with half of the pairs, and of one with all."""
    for ranks in (1, 2):
        outcome = Ranks(ranks, [tmp_path, ranks], module="tests.cluster.contrast_worker").wait()
        assert outcome.code == 0, outcome.stderr
    whole = torch.load(tmp_path / "0-of-1.pt")
    parts = [torch.load(tmp_path / f"{rank}-of-2.pt") for rank in range(2)]
    assert whole.keys() == parts[0].keys() == parts[1].keys()
    for name, expected in whole.items():
        summed = parts[0][name] + parts[1][name]
        torch.testing.assert_close(summed, expected, atol=1e-5, rtol=1e-4, msg=name)
