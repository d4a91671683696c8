"""Validation: exact answers are those that generation writes, and the best checkpoint is kept."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder
from model.build import build, build_tokenizer
from model.presets import system
from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.config.run_config import RunConfig
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.generate_answers import generate_answers, without_media
from pipeline.train.losses import loss_terms
from pipeline.train.step_sync import sync_step
from pipeline.train.validation import (
    Validation,
    ValidationMetrics,
    open_validation,
    validation_batches,
)
from tests.worlds import question_shards, text_sample

SAMPLES = 10


def with_answer(sample: Sample, text: str) -> Sample:
    return replace(sample, turns=(*sample.turns[:-1], Turn(role="assistant", text=text)))


class World:
    """A run whose validation data hold answers that its model gives, and some that it does not."""

    def __init__(self, folder: Path, *, packing: str) -> None:
        preset = system("digits")
        stage = replace(preset.sft, precision="fp32", packing=packing, micro_batch=3)
        preset = replace(preset, sft=stage)
        self.model = build(preset.model, stage, weights="pretrained")
        self.tokenizer = build_tokenizer(preset.model, weights="pretrained")
        self.encoder = SampleEncoder(
            preset.model, self.tokenizer, prompt=stage.prompt, max_tokens=stage.max_tokens
        )
        asked = ShardSet([question_shards(folder / "questions", SAMPLES)])
        given = self.answers([asked[row] for row in range(SAMPLES)])
        samples = [
            with_answer(asked[row], given[row] if row % 3 else "nothing at all")
            for row in range(SAMPLES)
        ]
        early = text_sample(0, 1).turns  # an earlier answer, which does not count
        samples[1] = replace(samples[1], turns=(*early, *samples[1].turns))
        (samples[1],) = [with_answer(samples[1], answer) for answer in self.answers([samples[1]])]
        self.samples = samples
        data = write_folder(folder / "held-out", samples, job="test")
        self.run = RunConfig(
            stage="sft",
            system=preset,
            data=("unused",),
            validation_data=(str(data),),
            output=str(folder / "run"),
        )

    def answers(self, samples: list[Sample]) -> list[str]:
        found = generate_answers(
            self.model, self.tokenizer, self.encoder, samples, max_new_tokens=12
        )
        return [one.answer for one in found]

    def validate(self, **changes: object) -> ValidationMetrics | None:
        run = replace(self.run, **changes)
        data = open_validation(run, self.tokenizer)
        assert data is not None
        terms = loss_terms(run.system.model, run.settings)
        sync = partial(
            sync_step,
            kinds=run.settings.kinds(run.system.model),
            losses=terms,
            stop=False,
            save_status=SaveStatus(),
            device="cpu",
        )
        batches = validation_batches(run, data, self.encoder, self.tokenizer.pad_token_id)
        self.validation = Validation(data, batches, terms, seed=0, every=2, last=5)
        return self.validation.run(self.model, 4, sync, lambda *_, **__: None)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_exact_answers_are_those_that_greedy_decoding_writes(tmp_path: Path, packing: str) -> None:
    world = World(tmp_path, packing=packing)
    metrics = world.validate()
    assert metrics is not None
    truths = [sample.turns[-1].text for sample in world.samples]
    for accuracy, view in (
        (metrics.accuracy, lambda sample: sample),
        (metrics.blind["accuracy"], without_media),
    ):
        answers = world.answers([view(sample) for sample in world.samples])
        exact = sum(map(str.__eq__, answers, truths))
        assert accuracy == exact / SAMPLES
    assert metrics.accuracy == 0.6  # so neither none nor all
    assert metrics.samples == metrics.blind["samples"] == SAMPLES


@pytest.mark.usefixtures("alone")
def test_a_validation_draws_the_same_samples_each_time(tmp_path: Path) -> None:
    world = World(tmp_path, packing="auto")
    few = world.validate(validation_samples=4)
    assert few is not None
    assert few.samples == 4
    assert not world.validation.is_due(4), "done"
    assert [step for step in range(6) if world.validation.is_due(step)] == [0, 2, 5]
    again = world.validate(validation_samples=4)
    assert again is not None
    assert replace(again, seconds=few.seconds) == few
    other = world.validate(validation_samples=4, seed=1)
    assert other is not None
    assert other.data != few.data
    assert math.isfinite(other.loss)


@pytest.mark.usefixtures("alone")
def test_samples_that_cannot_be_used_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, packing="auto")
    broken = [
        replace(sample, media=tuple(replace(one, data=b"none") for one in sample.media))
        for sample in world.samples
    ]
    data = write_folder(tmp_path / "some", [*broken[:2], *world.samples[2:]], job="test")
    metrics = world.validate(validation_data=(str(data),))
    assert metrics is not None
    assert (metrics.samples, metrics.bad, metrics.blind["samples"]) == (8, 2, 8)
    assert "validation: 2 of 10 samples skipped; first: sample" in caplog.text
    data = write_folder(tmp_path / "none", broken, job="test")
    with pytest.raises(UserError, match="--validation-data: all 10 samples are unusable; first"):
        world.validate(validation_data=(str(data),))


def test_a_loss_that_is_not_finite_is_null() -> None:
    metrics = ValidationMetrics(
        step=1,
        samples=2,
        bad=0,
        loss=math.nan,
        losses={"text": math.nan},
        accuracy=None,
        blind=None,
        data="x",
        seconds=1.0,
    )
    assert metrics.to_json() == {
        "step": 1,
        "samples": 2,
        "bad": 0,
        "loss": None,
        "losses": {"text": None},
        "data": "x",
        "seconds": 1.0,
    }
