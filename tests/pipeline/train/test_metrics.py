"""Metrics of a step by source, the same for padded and for packed batches."""

import json
import math
from dataclasses import replace

import pytest
import torch

from model.batch import IGNORED
from pipeline.data.collate import collate, pack
from pipeline.data.encode import Example, MediumInput
from pipeline.data.loader import MicroBatch
from pipeline.forecast.flops import UnitCosts, Work
from pipeline.train.loss_term import LossSum
from pipeline.train.losses import text_loss
from pipeline.train.metrics import (
    MetricsAccumulator,
    SourceMetrics,
    StepMetrics,
    WorkMetrics,
    samples_o,
    source_names,
)


def example(length, targets, *, source, answer=None):
    """Return an example whose last tokens are targets."""
    ids = list(range(1, length + 1))
    labels = [IGNORED] * (length - targets) + ids[length - targets :]
    return Example(ids=ids, labels=labels, kinds=[""] * length, source=source, answer=answer)


EXAMPLES = [example(5, 2, source=1), example(3, 1, source=0), example(6, 4, source=1)]


def batches():
    yield collate(EXAMPLES, pad_id=0, side="right")
    yield pack(EXAMPLES)


@pytest.mark.parametrize("batch", batches(), ids=["padded", "packed"])
def test_each_target_belongs_to_its_sample(batch):
    assert samples_o(batch).tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert batch.targets_o.tolist() == [4, 5, 3, 3, 4, 5, 6]


def test_each_decoder_target_belongs_to_its_sample():
    examples = [example(4, 0, source=0, answer=[7, 8]), example(4, 0, source=0, answer=[9])]
    batch = collate(examples, pad_id=0, side="right")
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
    loss = text_loss(logits, batch.targets_o)
    accumulator = MetricsAccumulator(
        ["text"], ["captions", "dialogues", "unused"], (), costs(), peak=28.0
    )
    item = MicroBatch(batch=batch, samples=3, sources=(1, 0, 1))
    accumulator.add(item, {"text": loss})
    assert accumulator.gather() == {"text": (pytest.approx(loss.total.item()), loss.count)}
    work = accumulator.metrics(seconds=2.0)
    sources = work.sources
    assert sources.keys() == {"captions", "dialogues"}
    assert sources["captions"].loss == pytest.approx(loss.per_target_m[2].item())
    total = sum(source.loss * source.targets for source in sources.values())
    assert total == pytest.approx(loss.total.item())
    assert (sources["dialogues"].samples, sources["dialogues"].tokens) == (2, 11)
    assert sources["dialogues"].targets == 6
    assert work.memory_bytes[0] > 1e6
    assert work.imbalance == {"backbone": 1.0}
    assert work.mfu == 0.5  # 14 positions of 2 FLOPs in 2 seconds at 28 FLOP/s
    totals = accumulator.totals
    assert (totals.samples, totals.positions, totals.pairs) == (3, 14, 42)


def test_dummies_and_losses_without_summands_do_not_count(alone):
    dummy = Example(ids=[0], labels=[IGNORED], kinds=[""])
    batch = collate([EXAMPLES[0], dummy], pad_id=0, side="right")
    accumulator = MetricsAccumulator(["itc"], ["captions", "dialogues"], ("image",), None, None)
    itc = LossSum(total=torch.ones(()), count=1)
    accumulator.add(MicroBatch(batch=batch, samples=1, sources=(1,)), {"itc": itc})
    accumulator.add(MicroBatch(batch=pack([dummy]), samples=0), {"itc": itc})
    assert accumulator.gather() == {"itc": (2.0, 2)}
    work = accumulator.metrics(seconds=1.0)
    expected = SourceMetrics(samples=1, tokens=5, targets=2, loss=None)
    assert work.sources == {"dialogues": expected}
    assert work.mfu is None
    assert accumulator.gather() == {"itc": (0.0, 0)}
    assert accumulator.metrics(seconds=1.0).sources == {}


def test_a_steps_metrics_are_one_flat_object():
    source = SourceMetrics(samples=1, tokens=5, targets=2, loss=None)
    metrics = StepMetrics(
        step=1,
        samples=8,
        tokens=40,
        skipped_steps=0,
        loss=2.0,
        losses={"text": 2.0},
        lr=0.1,
        lr_by_group={"stage": 0.1},
        grad_norm=1.0,
        step_seconds=0.5,
        tokens_per_second=80.0,
        padding_share=0.0,
        data_wait_share=0.1,
        work=WorkMetrics(sources={"captions": source}, memory_bytes=[7]),
        phase_seconds={"data": 0.1},
    )
    written = metrics.to_json()
    assert "lr_by_group" in replace(metrics, lr_by_group={"stage": 0.1, "peft": 0.2}).to_json()
    contract = "step samples tokens skipped_steps loss losses lr grad_norm step_seconds"
    assert list(written) == [
        *contract.split(),
        "tokens_per_second",
        *("padding_share", "data_wait_share", "sources", "memory_bytes", "phase_seconds"),
    ]
    assert written["sources"] == {
        "captions": {"samples": 1, "tokens": 5, "targets": 2, "loss": None}
    }
    assert metrics.is_finite
    bad = replace(
        metrics,
        loss=math.nan,
        losses={"text": math.nan},
        grad_norm=math.inf,
        work=replace(metrics.work, sources={"captions": replace(source, loss=math.nan)}),
    )
    assert not bad.is_finite
    expected = written | {"loss": None, "losses": {"text": None}, "grad_norm": None}
    assert json.loads(json.dumps(bad.to_json(), allow_nan=False)) == expected


def test_source_names_are_the_shortest_different_path_suffixes():
    assert source_names(["/a/x", "/b/y"]) == ["x", "y"]
    assert source_names(["/a/x", "/b/x"]) == ["a/x", "b/x"]
    assert source_names(["/a/x", "/a/x"]) == ["0: /a/x", "1: /a/x"]


@pytest.mark.parametrize("with_features", [False, True])
def test_frozen_encoders_cost_nothing_where_features_are_given(alone, with_features):
    frozen, trained = Work(forward=1.0), Work(forward=1.0, backward=2.0)
    unit_costs = UnitCosts(
        position=Work(),
        pair=Work(),
        target=Work(),
        encoders={"image": frozen, "audio": trained},
        projectors={"image": frozen, "audio": frozen},
        seq2seq=False,
    )
    unit_costs = unit_costs.with_features() if with_features else unit_costs
    media = tuple(
        MediumInput(kind=kind, start=0, first=0, input_values=torch.zeros(1, 2))
        for kind in ("image", "image", "audio")
    )
    examples = [replace(EXAMPLES[0], media=media)]
    accumulator = MetricsAccumulator([], ["captions"], ("image", "audio"), unit_costs, peak=1.0)
    accumulator.add(MicroBatch(batch=pack(examples), samples=1, sources=(0,)), {})
    encoders = 3.0 if with_features else 5.0  # and three projectors
    assert accumulator.gather() == {}
    assert accumulator.metrics(seconds=1.0).mfu == encoders + 3.0
    assert accumulator.totals.media == {"image": 2, "audio": 1}
