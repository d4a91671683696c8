"""Validation: exact answers are those that generation writes, and the best checkpoint is kept."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder
from model.build import build, build_policy, build_reward_model, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.peft.reference import add_reference
from model.presets import system
from model.spec.rlhf import Dpo, Dress, Kto, Preference, RewardModel
from model.spec.system import RlhfStage
from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.config.run_config import RunConfig
from pipeline.data.encode import SampleEncoder
from pipeline.data.preferences import PreferenceEncoder
from pipeline.evaluate.generate_answers import generate_answers, without_media
from pipeline.train.losses import loss_terms
from pipeline.train.step_sync import sync_step
from pipeline.train.train import build_encoder
from pipeline.train.validation import (
    Validation,
    ValidationMetrics,
    answer_loss,
    open_validation,
    validation_batches,
)
from tests.worlds import preference_sample, question_shards, text_sample

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
        self.validation, metrics = validate(run, self.model, self.encoder, self.tokenizer)
        return metrics


def validate(
    run: RunConfig,
    model: MultimodalLM,
    encoder: SampleEncoder | PreferenceEncoder,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Validation, ValidationMetrics | None]:
    data = open_validation(run, tokenizer)
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
    batches = validation_batches(run, data, encoder, tokenizer.pad_token_id)
    answers = answer_loss(run.settings)
    validation = Validation(data, batches, terms, answers=answers, seed=0, every=2, last=5)
    return validation, validation.run(model, 4, sync, lambda *_, **__: None)


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


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "objective", [Dpo(sft_weight=1.0, media_weight=1.0), Kto(), Dress(), RewardModel()]
)
def test_rlhf_is_validated_by_its_chosen_answers(tmp_path: Path, objective: Preference) -> None:
    """They are exact where greedy decoding writes them, seeing and blind."""
    preset = system("digits")
    stage = replace(
        preset.stage("rlhf"), objective=objective, precision="fp32", global_batch=4, micro_batch=3
    )
    assert isinstance(stage, RlhfStage)
    preset = replace(preset, rlhf=stage)
    run = RunConfig(
        stage="rlhf",
        system=preset,
        data=("unused",),
        validation_data=(str(tmp_path / "held-out"),),
        output=str(tmp_path / "run"),
    )
    if isinstance(objective, Dress):
        model = build(preset.model, stage, weights="pretrained")
    elif isinstance(objective, RewardModel):
        model = build_reward_model(preset.model, stage, weights="pretrained")
    else:
        model = build_policy(preset.model, stage, weights="pretrained")
        add_reference(model.backbone, stage.peft)
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    prompts = SampleEncoder(
        preset.model,
        tokenizer,
        prompt=stage.prompt,
        max_tokens=stage.max_tokens,
        feedback=stage.answer_feedback,
    )

    def answers(samples: list[Sample]) -> list[str]:
        found = generate_answers(model, tokenizer, prompts, samples, max_new_tokens=24)
        return [one.answer for one in found]

    samples = [preference_sample(number) for number in range(SAMPLES)]
    if not isinstance(objective, RewardModel):
        given = answers(samples)
        for number in range(SAMPLES):
            text = given[number] if number % 3 else "nothing at all"
            samples[number] = with_answer(samples[number], text)
    thumb_down = replace(samples[0], id="down", turns=samples[0].turns[:-1])
    held_out = [*samples, thumb_down] if isinstance(objective, Kto) else samples
    write_folder(tmp_path / "held-out", held_out, job="test")
    _, metrics = validate(run, model, build_encoder(run, tokenizer, None), tokenizer)
    assert metrics is not None
    assert (metrics.samples, metrics.bad) == (len(held_out), 0)
    if isinstance(objective, RewardModel):  # it gives no answers
        assert (metrics.accuracy, metrics.blind) == (None, None)
        return

    truths = [sample.turns[-1].text for sample in samples]
    for accuracy, seen in (
        (metrics.accuracy, samples),
        (metrics.blind["accuracy"], [without_media(sample) for sample in samples]),
    ):
        assert accuracy == sum(map(str.__eq__, answers(seen), truths)) / SAMPLES
    assert metrics.accuracy == 0.6  # so neither none nor all
    assert metrics.blind["samples"] == len(held_out)
    assert metrics.blind["loss"] != metrics.losses["chosen"]
    if isinstance(objective, Dpo):
        assert metrics.losses["chosen"] == pytest.approx(metrics.losses["sft"], rel=1e-5)
    assert f"of chosen answers {metrics.losses['chosen']:.4f}, exact answers 60.0%" in str(metrics)


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
