"""A model that draws, from samples to gradients: signals, texts, noise, splits, the cache."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample, SampleError, Turn
from etl.storage.shards import ShardSet, write_folder
from model.batch import IGNORED, Batch
from model.build import build, build_caption_tokenizers
from model.freeze import set_trainable
from model.generative_lm import GenerativeLMOutput, GenerativeMultimodalLM
from model.presets import system
from model.spec import SpecError, System
from model.spec.output_branches import Generation, OutputBranchSpec
from pipeline.config.run_config import RunConfig, TrainOptions, resolve
from pipeline.data.collate import collate, dummy_example, pack
from pipeline.data.encode import Example, SampleEncoder
from pipeline.data.generation_targets import GenerationTargetEncoder, captions, ways
from pipeline.data.tokenize import SampleTokenizer
from pipeline.feature_cache.cache_key import text_key
from pipeline.feature_cache.cached import KeptTexts
from pipeline.feature_cache.measure import measure
from pipeline.feature_cache.precompute import plan
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.training import keepable
from pipeline.feature_cache.worker import Filled, Filler
from pipeline.forecast.forecast import stage_costs
from pipeline.forecast.plan import plan as plan_stage
from pipeline.train.objectives import objective_of
from tests.worlds import (
    caption_shards,
    generation_sample,
    generation_shards,
    generative_overrides,
    with_outputs,
)

SIGNALS = 3


@pytest.fixture(scope="module")
def preset() -> System:
    """The digits preset with a tiny way out, in its own vocabulary."""
    return with_outputs(system("digits"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two that draw and two that show."""
    folder = tmp_path_factory.mktemp("samples")
    drawn = ShardSet([generation_shards(folder / "drawn", 2)])
    shown = ShardSet([caption_shards(folder / "shown", 2)])
    return [drawn[0], shown[0], drawn[1], shown[1]]


def encoder_of(
    preset: System, tokenizer: PreTrainedTokenizerBase, known: CacheReader | None = None
) -> SampleEncoder:
    slots = preset.model.outputs
    generation = preset.pt.generation
    assert generation is not None
    known = known or CacheReader()
    drawing = GenerationTargetEncoder(
        slots,
        build_caption_tokenizers(slots, weights="random"),
        denoises=generation.denoise > 0,
        seed=0,
        known=known,
    )
    return SampleEncoder(
        preset.model,
        tokenizer,
        prompt="plain",
        max_tokens=200,
        drawing=drawing,
        features=known,
    )


def rows_of(encoder: SampleEncoder, samples: Sequence[Sample]) -> list[Example]:
    return [encoder.row(sample, position=number) for number, sample in enumerate(samples)]


def model_of(preset: System) -> GenerativeMultimodalLM:
    model = build(preset.model, preset.pt, weights="random", seed=0)
    assert isinstance(model, GenerativeMultimodalLM)
    set_trainable(model, preset.pt.trainable)
    return model.train()


def learnt(
    model: GenerativeMultimodalLM, preset: System, batches: Sequence[Batch]
) -> dict[str, float]:
    """Run batches as passes of one step; leave the gradients in the model, return the losses."""
    objective = objective_of(preset.model, preset.pt)
    counts = [objective.counts(batch) for batch in batches]
    total = {name: sum(count[name] for count in counts) for name in objective.weights}
    used = ["image", "to_image"]
    losses = dict.fromkeys(total, 0.0)
    for batch in batches:
        found = objective.losses(model(batch, used, used))
        assert {name: loss.number for name, loss in found.items()} == dict(objective.counts(batch))
        parts = [
            objective.weights[name] * loss.total / max(1, total[name])
            for name, loss in found.items()
        ]
        torch.stack(parts).sum().backward()
        for name, loss in found.items():
            losses[name] += float(loss.total.detach()) / max(1, total[name])
    return losses


def gradients(model: GenerativeMultimodalLM) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_signals_are_said_where_the_assistant_draws(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    row = encoder_of(preset, tokenizer).row(samples[0])
    vocabulary = preset.model.backbone.vocabulary
    places = [number for number, kind in enumerate(row.kinds) if kind]
    assert [row.kinds[place] for place in places] == ["to_image"] * SIGNALS
    assert [row.labels[place] for place in places] == list(range(vocabulary, vocabulary + SIGNALS))
    assert [row.ids[place] for place in places] == [0] * SIGNALS
    assert not row.media
    # Its caption stands before them: there is nothing else to tell the picture from.
    caption = tokenizer.encode(samples[0].turns[0].text, add_special_tokens=False)
    assert row.ids[1 : places[0]] == caption
    assert set(row.labels[: places[0]]) == {IGNORED}
    (drawn,) = row.generation_targets
    assert drawn.input_values is not None
    assert drawn.input_values.shape == preset.model.outputs[0].generator.shape
    assert drawn.ids is not None
    assert len(drawn.ids) == 77


def test_a_stage_that_does_not_draw_shows_what_it_takes(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    plain = SampleEncoder(preset.model, tokenizer, prompt="plain", max_tokens=200)
    assert [medium.kind for medium in plain.row(samples[0]).media] == ["image"]


def test_what_can_only_be_drawn_cannot_be_shown(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    audio = system("digits_audio").model
    drafter = SampleTokenizer(
        audio, tokenizer, prompt="plain", max_tokens=200, outputs=(OutputBranchSpec(),)
    )
    shown = samples[1]
    length = drafter.length(shown.id, shown.turns, ["image"])
    assert length.fault == f"sample {shown.id}: shows image, which the model only draws"
    drawn = drafter.length(samples[0].id, samples[0].turns, ["image"])
    assert (drawn.fault, drawn.media) == (None, ("to_image",))


def test_lengths_count_both_ways(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    drafter = SampleTokenizer(
        preset.model, tokenizer, prompt="plain", max_tokens=200, outputs=preset.model.outputs
    )
    for sample, kind in zip(samples, ["to_image", "image"] * 2, strict=True):
        kinds = [medium.kind for medium in sample.media]
        assert drafter.length(sample.id, sample.turns, kinds).media == (kind,)
        assert ways(sample.turns, kinds, preset.model.outputs) == [kind]


def test_a_question_whose_answer_is_drawn_is_refused(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    with pytest.raises(SampleError, match="its answer holds media, want text"):
        encoder_of(preset, tokenizer).question(samples[0])


def test_captions_are_the_lineages_or_the_nearest_words() -> None:
    asked = Turn(role="user", text="<image> Now draw a cat")
    drawn = Turn(role="assistant", text="<image>")
    told = Turn(role="assistant", text="Here is a dog <image>")
    assert captions((asked, drawn), {}) == ["Now draw a cat", "Now draw a cat"]
    assert captions((asked, told), {})[1] == "Here is a dog"
    assert captions((asked, told), {"captions": json.dumps(["", "a grey cat"])}) == [
        "Now draw a cat",
        "a grey cat",
    ]


def test_noise_depends_on_seed_position_and_number(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    encoder = encoder_of(preset, tokenizer)
    seeds = {encoder.row(samples[0], position=position).drawn[0].seed for position in range(9)}
    assert len(seeds) == 9
    assert encoder.row(samples[2], position=3).drawn[0].seed in seeds


def test_any_split_and_packing_give_the_same_losses_and_gradients(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """One pass, packed or padded; four of one sample; and one beside fillers only."""
    rows = rows_of(encoder_of(preset, tokenizer), samples)
    pad = tokenizer.pad_token_id
    nothing = collate([dummy_example(pad, seq2seq=False)], pad_id=pad, side="right")
    splits = [
        [pack(rows)],
        [collate(rows, pad_id=pad, side="right")],
        [pack([row]) for row in rows],
        [pack(rows[:1]), nothing, pack(rows[1:])],
    ]
    found = []
    for batches in splits:
        model = model_of(preset)
        found.append((learnt(model, preset, batches), gradients(model)))
    losses, slopes = found[0]
    assert set(losses) == {"text", "to_image.align", "to_image.denoise"}
    assert all(value > 0 for value in losses.values())
    moved = {name for name, slope in slopes.items() if slope.abs().sum() > 0}
    assert any(name.startswith("outputs.image.signals") for name in moved)
    assert any(name.startswith("outputs.image.head") for name in moved)
    assert any(name.startswith("outputs.image.projector.enter") for name in moved)
    assert any(name.startswith("inputs.image.projector") for name in moved)
    assert not any("generator" in name or name.startswith("backbone") for name in slopes)
    for other_losses, other_slopes in found[1:]:
        assert other_losses == pytest.approx(losses, rel=1e-5)
        assert other_slopes.keys() == slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(other_slopes[name], slope, atol=1e-6, rtol=1e-4)


def test_it_learns_to_say_signals_and_what_they_mean(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Two pictures by heart: the signals are said, and H comes near τ(t) of each."""
    torch.manual_seed(0)
    model = model_of(preset)
    rows = rows_of(encoder_of(preset, tokenizer), [samples[0], samples[2]])
    batch = pack(rows)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    history = []
    for _ in range(60):
        optimizer.zero_grad()
        history.append(learnt(model, preset, [batch]))
        optimizer.step()
    assert history[-1]["text"] < 0.3 * history[0]["text"]
    assert history[-1]["to_image.align"] < 0.2 * history[0]["to_image.align"]
    assert history[-1]["to_image.denoise"] < history[0]["to_image.denoise"]
    output = model(batch)
    said = output.logits_ov.argmax(1)[output.targets_o >= preset.model.backbone.vocabulary]
    assert said.tolist() == 2 * output.targets_o[:SIGNALS].tolist()
    near, far = (
        (
            output.drawn["to_image"].condition_embeds_glw[[a]]
            - output.drawn["to_image"].target_embeds_glw[[b]]
        )
        .square()
        .mean()
        for a, b in ((0, 0), (0, 1))
    )
    assert near < far


def test_a_rank_without_pictures_calls_what_the_others_call(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Under ZeRO-3 a module is a collective: all ranks must call each equally often."""
    rows = rows_of(encoder_of(preset, tokenizer), samples)
    model = model_of(preset)
    calls: list[dict[str, int]] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(
            lambda *_, name=name: calls[-1].update({name: calls[-1].get(name, 0) + 1})
        )
    used = ["image", "to_image"]
    for batch in (pack(rows[:1]), pack(rows[1:2]), pack(rows)):
        calls.append({})
        model(batch, used, used)
    assert calls[0] == calls[1] == calls[2]
    assert any("unet" in name for name in calls[0])
    drawn = model(pack(rows[1:2]), used, used).drawn["to_image"]
    assert (
        len(drawn.condition_embeds_glw)
        == len(drawn.target_embeds_glw)
        == len(drawn.noise_prediction.noise_pred_gcyx)
        == 0
    )
    calls.append({})
    output: GenerativeLMOutput = model(pack(rows[1:2]), ["image"], ["image"])
    assert not output.drawn
    assert not any("projector.enter" in name or "generator" in name for name in calls[-1])


def test_alignment_alone_needs_no_media_and_no_generator(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    align = replace(preset, pt=replace(preset.pt, generation=Generation(denoise=0.0)))
    broken = replace(samples[0].media[0], data=b"no picture")
    row = encoder_of(align, tokenizer).row(replace(samples[0], media=(broken,)))
    model = model_of(align)
    losses = learnt(model, align, [pack([row])])
    assert set(losses) == {"text", "to_image.align"}
    assert not any("unet" in name or "vae" in name for name, _ in model.named_parameters())
    with pytest.raises(SampleError, match="its image cannot be decoded"):
        encoder_of(preset, tokenizer).row(replace(samples[0], media=(broken,)))


def test_known_embeddings_give_the_same_losses_without_the_text_encoder(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], tmp_path: Path
) -> None:
    rows = rows_of(encoder_of(preset, tokenizer), samples)
    model = model_of(preset)
    wanted = learnt(model, preset, [pack(rows)])
    ids = torch.tensor([row.generation_targets[0].ids for row in (rows[0], rows[2])])
    embedded = model.output_branches()["to_image"].generator.embed(ids)

    def known(row: Example, number: int) -> Example:
        drawn = replace(row.generation_targets[0], ids=None, embedded=embedded[number])
        return replace(row, drawn=(drawn,))

    some = [known(rows[0], 0), *rows[1:]]
    assert learnt(model, preset, [pack(some)]) == pytest.approx(wanted, rel=1e-6)
    all_known = pack([known(rows[0], 0), rows[1], known(rows[2], 1), rows[3]])
    assert all_known.count("to_image") == (2, 0)
    texts = []
    model.output_branches()["to_image"].generator.text.register_forward_hook(
        lambda *_: texts.append(1)
    )
    drawn = model(all_known, ["image", "to_image"], ["image"]).drawn["to_image"]
    assert torch.equal(drawn.target_embeds_glw, embedded)
    assert not texts
    model(all_known, ["image", "to_image"], ["image", "to_image"])  # another rank has one to embed
    assert texts == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": Generation(), "trainable": ("inputs.*",)}, "generation trains no outputs"),
        ({"generation": Generation(align=0.5), "outputs": ()}, "requires a model with outputs"),
    ],
)
def test_a_stage_that_cannot_draw_is_one_line(
    preset: System, change: dict[str, object], message: str
) -> None:
    stage = {name: value for name, value in change.items() if name != "outputs"}
    model = replace(preset.model, outputs=change.get("outputs", preset.model.outputs))
    with pytest.raises(SpecError, match=message):
        replace(preset, model=model, pt=replace(preset.pt, **stage))


def test_weights_of_losses_make_sense() -> None:
    with pytest.raises(SpecError, match="both must be at least 0 and one of them positive"):
        Generation(align=0.0, denoise=0.0)


def test_signals_need_a_causal_backbone(preset: System) -> None:
    t5 = system("blip_2_flan_t5_xxl").model
    with pytest.raises(SpecError, match="supports no signal tokens"):
        replace(t5, outputs=preset.model.outputs)


def test_a_plan_counts_the_ways_out(preset: System) -> None:
    found = plan_stage(preset, "pt", 2, tokens=100)
    costs = stage_costs(preset.model, preset.pt)
    assert found.components["generator"] > found.components["output projector"] > 0
    assert found.components["signals"] == 2 * SIGNALS * preset.model.backbone.width
    assert found.tokens["to_image"] == SIGNALS
    assert costs.encoders["to_image"].forward > 0
    drawn = costs.projectors["to_image"]
    assert drawn.backward > drawn.forward / 2  # through the UNet and back, the projector twice


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    data = generation_shards(tmp_path / "data", 6)
    repeated = [generation_sample(0, number) for number in (0, 0, 1)]
    again = write_folder(tmp_path / "again", repeated, job="test")
    options = TrainOptions(
        preset="digits",
        data=(data, again),
        output=tmp_path / "cache",
        weights="random",
        set=tuple(generative_overrides(system("digits"))),
    )
    return resolve(options, "pt")


def test_a_filled_cache_knows_each_text_once_and_as_training_does(run: RunConfig) -> None:
    worker = Filler(run, None, batch=4, threads=1, device="cpu")
    model = build(run.system.model, run.settings, weights="random", seed=run.seed)
    set_trainable(model, run.settings.trainable)
    (kept,) = [part for part in keepable(run, model) if isinstance(part, KeptTexts)]
    assert worker.producers["to_image"] == kept.producer()
    stores = {kind: FeatureStore(Path(run.output), p) for kind, p in worker.producers.items()}
    for store in stores.values():
        store.create()
    shards = ShardSet([Path(folder) for folder in run.data])
    slots = {slot.modality: slot for slot in run.system.model.inputs}
    outputs = run.system.model.outputs
    counts, ranges = plan(shards, slots, outputs, stores, 4)
    texts = {captions(shards[n].turns, {})[0] for n in range(len(shards))}
    assert counts["to_image"].distinct == len(texts)
    assert counts["image"].distinct == 0  # all pictures of these data come out
    for item in ranges:
        filled = worker(item)
        assert isinstance(filled, Filled)
    lookup = CacheReader(stores=stores)
    for text in texts:
        found = lookup.find_text("to_image", text)
        assert found is not None
        assert found.key == text_key(text)
        assert found.features is not None
    number = 2
    wanted = kept.make(kept.values(shards[number], 0)[None])[0]
    found = lookup.find_text("to_image", captions(shards[number].turns, {})[0])
    assert found is not None
    torch.testing.assert_close(found.features, wanted, atol=1e-5, rtol=1e-5)
    timing = measure(shards, kept, outputs, stores["to_image"], "cpu")
    assert timing is not None
    assert timing.media == min(8, len(texts))


def test_labels_of_cut_or_unlearnt_signals_are_ignored(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Signals are never cut in two: the sample is told as bad instead."""
    drafter = SampleTokenizer(
        preset.model, tokenizer, prompt="plain", max_tokens=3, outputs=preset.model.outputs
    )
    length = drafter.length("x", samples[0].turns, ["image"])
    assert length.fault == "sample x: its media do not fit in 3 tokens"
    batch = pack(rows_of(encoder_of(preset, tokenizer), samples))
    assert int((batch.labels_bt >= preset.model.backbone.vocabulary).sum()) == 2 * SIGNALS
    assert (batch.labels_bt[batch.media["image"].media_mask_bt] == IGNORED).all()
