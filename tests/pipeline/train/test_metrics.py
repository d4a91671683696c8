"""A step's figures by source: from summands that are there anyway, whatever the layout of rows."""

from dataclasses import replace

import pytest
import torch

from model.batch import IGNORED
from pipeline.data.collate import collate, pack
from pipeline.data.encode import Example, MediumInput
from pipeline.data.loader import MicroBatch
from pipeline.forecast.flops import UnitCosts, Work
from pipeline.train.losses import Loss, text_loss
from pipeline.train.metrics import MetricsAccumulator, samples_o, source_names


def row(length, targets, *, source, answer=None):
    """Return a row whose last tokens are targets."""
    ids = list(range(1, length + 1))
    labels = [IGNORED] * (length - targets) + ids[length - targets :]
    return Example(ids=ids, labels=labels, kinds=[""] * length, source=source, answer=answer)


ROWS = [row(5, 2, source=1), row(3, 1, source=0), row(6, 4, source=1)]


def batches():
    yield collate(ROWS, pad_id=0, side="right")
    yield pack(ROWS)


@pytest.mark.parametrize("batch", batches(), ids=["padded", "packed"])
def test_every_target_knows_its_sample(batch):
    assert samples_o(batch).tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert batch.targets_o.tolist() == [4, 5, 3, 3, 4, 5, 6]


def test_a_decoders_targets_know_it_too():
    rows = [row(4, 0, source=0, answer=[7, 8]), row(4, 0, source=0, answer=[9])]
    batch = collate(rows, pad_id=0, side="right")
    assert samples_o(batch).tolist() == [0, 0, 1]


def costs():
    one = Work(forward=1.0, backward=1.0)
    return UnitCosts(
        position=one, pair=Work(), target=Work(), encoders={}, projectors={}, seq2seq=False
    )


@pytest.mark.parametrize("batch", batches(), ids=["padded", "packed"])
def test_losses_by_source_add_up_to_the_loss(alone, batch):
    torch.manual_seed(0)
    logits = torch.randn(7, 9)
    found = text_loss(logits, batch.targets_o)
    tally = MetricsAccumulator(["captions", "dialogues", "unused"], (), costs(), peak=28.0)
    item = MicroBatch(batch=batch, samples=3, sources=(1, 0, 1))
    tally.add(item, {"text": found})
    figures = tally.finish(seconds=2.0)
    sources = figures["sources"]
    assert sources.keys() == {"captions", "dialogues"}
    assert sources["captions"]["loss"] == pytest.approx(found.each_m[2].item())
    whole = sum(s["loss"] * s["targets"] for s in sources.values())
    assert whole == pytest.approx(found.total.item())
    assert (sources["dialogues"]["samples"], sources["dialogues"]["tokens"]) == (2, 11)
    assert sources["dialogues"]["targets"] == 6
    assert figures["memory_bytes"][0] > 1e6
    assert figures["imbalance"] == {"backbone": 1.0}
    assert figures["mfu"] == 0.5  # 14 positions of 2 FLOPs in 2 seconds at 28 a second
    assert (tally.totals.samples, tally.totals.positions, tally.totals.pairs) == (3, 14, 42)


def test_fillers_and_losses_without_summands_count_for_nothing(alone):
    filler = Example(ids=[0], labels=[IGNORED], kinds=[""])
    batch = collate([ROWS[0], filler], pad_id=0, side="right")
    tally = MetricsAccumulator(["captions", "dialogues"], ("image",), None, None)
    tally.add(MicroBatch(batch=batch, samples=1, sources=(1,)), {"itc": Loss(torch.ones(()), 1)})
    tally.add(MicroBatch(batch=pack([filler]), samples=0), {})
    figures = tally.finish(seconds=1.0)
    counted = {"samples": 1, "tokens": 5, "targets": 2, "loss": None}
    assert figures["sources"] == {"dialogues": counted}
    assert "mfu" not in figures
    assert tally.finish(seconds=1.0)["sources"] == {}


def test_sources_are_named_by_as_little_as_tells_them_apart():
    assert source_names(["/a/x", "/b/y"]) == ["x", "y"]
    assert source_names(["/a/x", "/b/x"]) == ["a/x", "b/x"]
    assert source_names(["/a/x", "/a/x"]) == ["0: /a/x", "1: /a/x"]


def test_the_encoder_has_not_worked_on_media_whose_features_were_known(alone):
    one = Work(forward=1.0)
    parts = {"image": one}
    told = UnitCosts(
        position=Work(), pair=Work(), target=Work(), encoders=parts, projectors=parts, seq2seq=False
    )
    placed = [
        MediumInput(kind="image", start=0, first=0, values=values, features=features)
        for values, features in ((torch.zeros(1, 2), None), (None, torch.ones(1, 3, 4)))
    ]
    rows = [replace(ROWS[0], media=(medium,)) for medium in placed]
    tally = MetricsAccumulator(["captions", "dialogues"], ("image",), told, peak=1.0)
    tally.add(MicroBatch(batch=pack(rows), samples=2, sources=(0, 0)), {})
    assert tally.finish(seconds=1.0)["mfu"] == 3.0  # one encoder, two projectors
    assert (tally.totals.media, tally.totals.encoded) == ({"image": 2}, {"image": 1})
