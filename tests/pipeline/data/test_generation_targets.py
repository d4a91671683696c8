"""Generation from samples to gradients: signal tokens, captions, noise, splits, the cache."""

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
from model.multimodal_lm import MultimodalLM, MultimodalOutput
from model.output_branch import target_embeds
from model.presets import system
from model.pretraining.build import SentenceReader, sentence_reader
from model.spec import SpecError, System
from model.spec.generators import (
    AudioLdm,
    GeneratorSpec,
    StableDiffusion,
    TextToVideo,
    UnClip,
)
from model.spec.output_branches import Generation, OutputBranchSpec
from model.spec.system import TRAINABLE_OUTPUTS
from pipeline.config.run_config import RunConfig, TrainOptions, resolve
from pipeline.data import generation_targets as targets_module
from pipeline.data.collate import collate, dummy_example, pack
from pipeline.data.encode import Example, SampleEncoder
from pipeline.data.features import FeatureReader
from pipeline.data.generation_targets import (
    GenerationTargetEncoder,
    branch_kinds,
    captions,
    read_target,
)
from pipeline.data.tokenize import SampleTokenizer
from pipeline.feature_cache.distinct_media import distinct_media
from pipeline.feature_cache.precompute import plan_ranges
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import feature_stores
from pipeline.feature_cache.training import encoder_ids
from pipeline.feature_cache.worker import PrecomputeWorker, RangeResult
from pipeline.forecast.forecast import stage_costs
from pipeline.forecast.plan import plan as plan_stage
from pipeline.train.losses import compute_losses, count_losses, loss_terms
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
    """The digits preset with a tiny output branch."""
    return with_outputs(system("digits"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two that generate an image, and two with an input image."""
    folder = tmp_path_factory.mktemp("samples")
    generated = ShardSet([generation_shards(folder / "generated", 2)])
    inputs = ShardSet([caption_shards(folder / "inputs", 2)])
    return [generated[0], inputs[0], generated[1], inputs[1]]


def encoder_of(
    preset: System,
    tokenizer: PreTrainedTokenizerBase,
    sentences: SentenceReader | None = None,
    features: FeatureReader | None = None,
) -> SampleEncoder:
    branches = preset.model.outputs
    generation = preset.pt.generation
    assert generation is not None
    generation_targets = GenerationTargetEncoder(
        branches,
        build_caption_tokenizers(branches, weights="random"),
        generation=generation,
        seed=0,
        features=features,
    )
    return SampleEncoder(
        preset.model,
        tokenizer,
        prompt="plain",
        max_tokens=200,
        sentences=sentences,
        generation_targets=generation_targets,
    )


def encode_all(encoder: SampleEncoder, samples: Sequence[Sample]) -> list[Example]:
    return [encoder.encode(sample, position=number) for number, sample in enumerate(samples)]


def model_of(preset: System, *, latents_given: bool = False) -> MultimodalLM:
    model = build(preset.model, preset.pt, weights="random", seed=0, latents_given=latents_given)
    assert isinstance(model, MultimodalLM)
    set_trainable(model, preset.pt.trainable)
    return model.train()


def backward(model: MultimodalLM, preset: System, batches: Sequence[Batch]) -> dict[str, float]:
    """Run batches as passes of one step; leave the gradients in the model, return the losses."""
    terms = loss_terms(preset.model, preset.pt)
    counts = [count_losses(terms, batch) for batch in batches]
    total = {term.name: sum(count[term.name] for count in counts) for term in terms}
    used = ["image", *(branch.kind for branch in preset.model.outputs)]
    losses = dict.fromkeys(total, 0.0)
    for batch in batches:
        found = compute_losses(terms, model(batch, used))
        assert {name: loss.count for name, loss in found.items()} == count_losses(terms, batch)
        parts = [term.weight * found[term.name].total / max(1, total[term.name]) for term in terms]
        torch.stack(parts).sum().backward()
        for name, loss in found.items():
            losses[name] += float(loss.total.detach()) / max(1, total[name])
    return losses


def gradients(model: MultimodalLM) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_stage_may_have_text_a_reference_and_generation(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    reference = system("dlp").tiny().pt.reference
    assert reference is not None
    everything = replace(preset, pt=replace(preset.pt, reference=reference))
    sentences = sentence_reader(everything.model, everything.pt, weights="random")
    examples = encode_all(encoder_of(everything, tokenizer, sentences), samples)
    assert [bool(example.sentence) for example in examples] == [False, True, False, True]
    model = model_of(everything)
    losses = backward(model, everything, [pack(examples)])
    assert losses.keys() == {"text", "align", "to_image.align", "to_image.denoise"}
    assert all(loss > 0 for loss in losses.values())
    assert losses["align"] == pytest.approx(
        backward(model_of(everything), everything, [pack(examples[1:2]), pack(examples[3:])])[
            "align"
        ]
    )
    moved = {name.partition(".")[0] for name in gradients(model)}
    assert {"inputs", "outputs"} <= moved
    assert "reference" not in moved


def test_signal_tokens_are_targets_where_the_assistant_generates(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    example = encoder_of(preset, tokenizer).encode(samples[0])
    vocabulary = preset.model.backbone.vocabulary
    positions = [number for number, kind in enumerate(example.kinds) if kind]
    assert [example.kinds[i] for i in positions] == ["to_image"] * SIGNALS
    signal_ids = list(range(vocabulary, vocabulary + SIGNALS))
    assert [example.labels[i] for i in positions] == signal_ids
    assert [example.ids[i] for i in positions] == [0] * SIGNALS
    assert not example.media
    # Its caption comes before them: nothing else tells what to generate.
    caption = tokenizer.encode(samples[0].turns[0].text, add_special_tokens=False)
    assert example.ids[1 : positions[0]] == caption
    assert set(example.labels[: positions[0]]) == {IGNORED}
    (target,) = example.generation_targets
    assert target.input_values is not None
    assert target.input_values.shape == preset.model.outputs[0].generator.shape
    assert target.ids is not None
    assert len(target.ids) == 77


def test_in_a_stage_without_generation_all_media_are_inputs(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    plain = SampleEncoder(preset.model, tokenizer, prompt="plain", max_tokens=200)
    assert [medium.kind for medium in plain.encode(samples[0]).media] == ["image"]


def test_a_kind_with_an_output_branch_only_cannot_be_an_input(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    audio = system("digits_audio").model
    sample_tokenizer = SampleTokenizer(
        audio, tokenizer, prompt="plain", max_tokens=200, outputs=(OutputBranchSpec(),)
    )
    sample = samples[1]
    length = sample_tokenizer.length(sample.id, sample.turns, ["image"])
    assert length.skip_reason == (
        f"sample {sample.id}: its image is an input, which the model only outputs"
    )
    generated = sample_tokenizer.length(samples[0].id, samples[0].turns, ["image"])
    assert (generated.skip_reason, generated.branch_kinds) == (None, ("to_image",))


def test_lengths_count_inputs_and_generation_targets(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    sample_tokenizer = SampleTokenizer(
        preset.model, tokenizer, prompt="plain", max_tokens=200, outputs=preset.model.outputs
    )
    for sample, kind in zip(samples, ["to_image", "image"] * 2, strict=True):
        kinds = [medium.kind for medium in sample.media]
        assert sample_tokenizer.length(sample.id, sample.turns, kinds).branch_kinds == (kind,)
        assert branch_kinds(sample.turns, kinds, preset.model.outputs) == [kind]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_videos_and_sounds_are_targets_too(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Decoded, packed with text, aligned and denoised; tiny, as presets have them."""
    generator = TextToVideo() if kind == "video" else AudioLdm()
    branch = OutputBranchSpec(modality=kind, signals=SIGNALS, generator=generator).tiny()
    digits = system("digits")
    preset = replace(
        digits,
        model=replace(digits.model, outputs=(branch,)),
        pt=replace(digits.pt, generation=Generation(), trainable=TRAINABLE_OUTPUTS),
    )
    made = [generation_sample(0, number, kind=kind) for number in range(2)]
    examples = encode_all(encoder_of(preset, tokenizer), made)
    values = [example.generation_targets[0].input_values for example in examples]
    assert [tuple(each.shape) for each in values] == 2 * [branch.generator.shape]
    assert not torch.equal(*values)
    model = model_of(preset)
    losses = backward(model, preset, [pack(examples)])
    assert losses.keys() == {"text", f"to_{kind}.align", f"to_{kind}.denoise"}
    assert all(loss > 0 for loss in losses.values())
    assert any(name.startswith(f"outputs.{kind}.projector") for name in gradients(model))
    broken = replace(made[0].media[0], data=b"nothing")
    with pytest.raises(SampleError, match=f"its {kind} cannot be decoded"):
        encoder_of(preset, tokenizer).encode(replace(made[0], media=(broken,)))


def test_a_target_that_is_made_from_the_medium_needs_it(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Of unCLIP, whose condition is a picture's embedding; its captions are not used."""
    branch = OutputBranchSpec(signals=SIGNALS, generator=UnClip()).tiny()
    align = replace(
        preset,
        model=replace(preset.model, outputs=(branch,)),
        pt=replace(preset.pt, generation=Generation(denoise=0.0)),
    )
    [example] = encode_all(encoder_of(align, tokenizer), samples[:1])
    model = model_of(align)
    output = model(pack([example]), ["image", "to_image"]).generation["to_image"]
    generator = model.output_branches()["to_image"].generator
    pixels = example.generation_targets[0].input_values[None]
    ids = torch.zeros(1, 77, dtype=torch.long)
    assert torch.equal(output.target_embeds_glw, target_embeds(generator, ids, pixels))
    assert output.noise_prediction is None


def test_a_prompt_whose_answer_is_generated_media_is_rejected(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    with pytest.raises(SampleError, match="its answer holds media, want text"):
        encoder_of(preset, tokenizer).encode_prompt(samples[0])


def test_captions_are_from_the_lineage_or_the_nearest_text() -> None:
    request = Turn(role="user", text="<image> Now draw a cat")
    bare = Turn(role="assistant", text="<image>")
    described = Turn(role="assistant", text="Here is a dog <image>")
    assert captions((request, bare), {}) == ["Now draw a cat", "Now draw a cat"]
    assert captions((request, described), {})[1] == "Here is a dog"
    assert captions((request, described), {"captions": json.dumps(["", "a grey cat"])}) == [
        "Now draw a cat",
        "a grey cat",
    ]


def test_noise_depends_on_seed_position_and_number(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    encoder = encoder_of(preset, tokenizer)

    def seed(sample: Sample, position: int) -> int:
        return encoder.encode(sample, position=position).generation_targets[0].seed

    seeds = {seed(samples[0], position) for position in range(9)}
    assert len(seeds) == 9
    assert seed(samples[2], 3) in seeds


def test_any_split_and_packing_give_the_same_losses_and_gradients(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """One micro-step, packed or padded; four of one sample; and one with a dummy batch."""
    examples = encode_all(encoder_of(preset, tokenizer), samples)
    pad = tokenizer.pad_token_id
    dummy = collate([dummy_example(pad, seq2seq=False)], pad_id=pad, side="right")
    splits = [
        [pack(examples)],
        [collate(examples, pad_id=pad, side="right")],
        [pack([example]) for example in examples],
        [pack(examples[:1]), dummy, pack(examples[1:])],
    ]
    found = []
    for batches in splits:
        model = model_of(preset)
        found.append((backward(model, preset, batches), gradients(model)))
    losses, grads = found[0]
    assert set(losses) == {"text", "to_image.align", "to_image.denoise"}
    assert all(value > 0 for value in losses.values())
    nonzero = {name for name, grad in grads.items() if grad.abs().sum() > 0}
    assert any(name.startswith("outputs.image.signals") for name in nonzero)
    assert any(name.startswith("outputs.image.head") for name in nonzero)
    assert any(name.startswith("outputs.image.projector.enter") for name in nonzero)
    assert any(name.startswith("inputs.image.projector") for name in nonzero)
    assert not any("generator" in name or name.startswith("backbone") for name in grads)
    for other_losses, other_grads in found[1:]:
        assert other_losses == pytest.approx(losses, rel=1e-5)
        assert other_grads.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, atol=1e-6, rtol=1e-4)


def test_it_learns_signal_tokens_and_their_conditions(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Overfitting two images: the signal tokens are predicted, and H approaches each τ(t).

    Under a large weight eq. 5 finds conditions under which the random UNet predicts better.
    """
    batch = pack(encode_all(encoder_of(preset, tokenizer), [samples[0], samples[2]]))

    def learn(denoise: float, steps: int) -> tuple[MultimodalLM, list[dict[str, float]]]:
        weighted = replace(preset, pt=replace(preset.pt, generation=Generation(denoise=denoise)))
        torch.manual_seed(0)
        model = model_of(weighted)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=3e-3)
        history = []
        for _ in range(steps):
            optimizer.zero_grad()
            history.append(backward(model, weighted, [batch]))
            optimizer.step()
        return model, history

    model, history = learn(1.0, 60)
    assert history[-1]["text"] < 0.3 * history[0]["text"]
    assert history[-1]["to_image.align"] < 0.2 * history[0]["to_image.align"]
    _, denoised = learn(30.0, 20)
    assert denoised[-1]["to_image.denoise"] < 0.99 * denoised[0]["to_image.denoise"]
    output = model(batch)
    predicted = output.logits_ov.argmax(1)[output.targets_o >= preset.model.backbone.vocabulary]
    assert predicted.tolist() == 2 * output.targets_o[:SIGNALS].tolist()
    near, far = (
        (
            output.generation["to_image"].condition_embeds_glw[[a]]
            - output.generation["to_image"].target_embeds_glw[[b]]
        )
        .square()
        .mean()
        for a, b in ((0, 0), (0, 1))
    )
    assert near < far


def test_a_rank_without_images_calls_the_same_modules_as_the_others(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """Under ZeRO-3 a module call is a collective: all ranks must call each equally often.

    In the backward pass, too, in which the UNet is recomputed.
    """
    examples = encode_all(encoder_of(preset, tokenizer), samples)
    preset = replace(preset, pt=replace(preset.pt, recompute=True))
    model = model_of(preset)
    calls: list[dict[str, int]] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(
            lambda *_, name=name: calls[-1].update({name: calls[-1].get(name, 0) + 1})
        )
    used = ["image", "to_image"]
    for batch in (pack(examples[:1]), pack(examples[1:2]), pack(examples)):
        calls.append({})
        terms = loss_terms(preset.model, preset.pt)
        losses = compute_losses(terms, model(batch, used)).values()
        torch.stack([loss.total for loss in losses]).sum().backward()
    assert calls[0] == calls[1] == calls[2]
    unet = [count for name, count in calls[0].items() if "unet.up_blocks" in name]
    assert {1, 2} <= set(unet)  # up to the last tensor that is needed
    generation = model(pack(examples[1:2]), used).generation["to_image"]
    assert (
        len(generation.condition_embeds_glw)
        == len(generation.target_embeds_glw)
        == len(generation.noise_prediction.noise_pred_gcyx)
        == 0
    )
    calls.append({})
    output: MultimodalOutput = model(pack(examples[1:2]), ["image"])
    assert not output.generation
    assert not any("projector.enter" in name or "generator" in name for name in calls[-1])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many media have been read from shards, and how many decoded."""
    found = {"read": 0, "decoded": 0}

    def count(name: str, target: object, attribute: str) -> None:
        inner = getattr(target, attribute)

        def counting(*args: object) -> object:
            found[name] += 1
            return inner(*args)

        monkeypatch.setattr(target, attribute, counting)

    count("read", ShardSet, "_medium_data")
    for reader in ("read_image", "read_video", "read_audio"):
        count("decoded", targets_module, reader)
    return found


def test_alignment_alone_needs_no_media_and_no_generator(
    preset: System,
    tokenizer: PreTrainedTokenizerBase,
    reads: dict[str, int],
    tmp_path: Path,
) -> None:
    align = replace(preset, pt=replace(preset.pt, generation=Generation(denoise=0.0)))
    shards = ShardSet([generation_shards(tmp_path, 2)])
    examples = encode_all(encoder_of(align, tokenizer), [shards[0], shards[1]])
    model = model_of(align)
    losses = backward(model, align, [pack(examples)])
    assert set(losses) == {"text", "to_image.align"}
    assert reads == {"read": 0, "decoded": 0}
    assert not any("unet" in name or "vae" in name for name, _ in model.named_parameters())
    encode_all(encoder_of(preset, tokenizer), [shards[0], shards[1]])
    assert reads == {"read": 2, "decoded": 2}
    broken = replace(shards[0].media[0], data=b"no picture")
    with pytest.raises(SampleError, match="its image cannot be decoded"):
        encoder_of(preset, tokenizer).encode(replace(shards[0], media=(broken,)))


@pytest.mark.parametrize("generator", [StableDiffusion(), UnClip()], ids=lambda spec: spec.kind)
def test_cached_targets_give_the_same_losses_and_read_no_medium(
    preset: System,
    tokenizer: PreTrainedTokenizerBase,
    generator: GeneratorSpec,
    reads: dict[str, int],
    tmp_path: Path,
) -> None:
    """Bit for bit; the model holds no encoder of the autoencoder, and calls no text encoder."""
    branch = OutputBranchSpec(signals=SIGNALS, generator=generator).tiny()
    preset = replace(preset, model=replace(preset.model, outputs=(branch,)))
    data = generation_shards(tmp_path / "data", 4)
    shards = ShardSet([data])
    samples = [shards[number] for number in range(4)]
    model = model_of(preset)
    expected = backward(model, preset, [pack(encode_all(encoder_of(preset, tokenizer), samples))])
    cache = str(tmp_path / "cache")
    run = RunConfig(system=preset, stage="pt", weights="random", data=(str(data),), output=cache)
    reader = reader_of(precomputed(run), run)
    assert set(reader.kinds) == {"image", "to_image", "to_image.latents"}
    reads.update(read=0, decoded=0)
    fresh = [shards[number] for number in range(4)]
    examples = encode_all(encoder_of(preset, tokenizer, features=reader), fresh)
    assert reads == {"read": 0, "decoded": 0}
    cached = model_of(preset, latents_given=True)
    cached.feature_kinds = reader.kinds
    inner = cached.output_branches()["to_image"].generator
    assert inner.vae is None
    inner.text.forward = None  # if it were called, it would be an error
    assert backward(cached, preset, [pack(examples)]) == expected
    found, other = gradients(cached), gradients(model)
    assert found.keys() == other.keys()
    assert all(torch.equal(found[name], other[name]) for name in found)
    cached(collate([dummy_example(0, seq2seq=False)], pad_id=0, side="right"), ["to_image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": Generation(), "trainable": ("inputs.*",)}, "generation trains no outputs"),
        ({"generation": Generation(align=0.5), "outputs": ()}, "requires a model with outputs"),
    ],
)
def test_a_stage_that_cannot_generate_is_an_error(
    preset: System, change: dict[str, object], message: str
) -> None:
    stage = {name: value for name, value in change.items() if name != "outputs"}
    model = replace(preset.model, outputs=change.get("outputs", preset.model.outputs))
    with pytest.raises(SpecError, match=message):
        replace(preset, model=model, pt=replace(preset.pt, **stage))


def test_loss_weights_must_be_valid() -> None:
    with pytest.raises(SpecError, match="both must be at least 0 and one of them positive"):
        Generation(align=0.0, denoise=0.0)


def test_signal_tokens_need_a_causal_backbone(preset: System) -> None:
    t5 = system("blip_2_flan_t5_xxl").model
    with pytest.raises(SpecError, match="supports no signal tokens"):
        replace(t5, outputs=preset.model.outputs)


def test_a_plan_includes_the_output_branches(preset: System) -> None:
    found = plan_stage(preset, "pt", 2, tokens=100)
    costs = stage_costs(preset.model, preset.pt)
    assert found.components["generator"] > found.components["output projector"] > 0
    assert found.components["signals"] == 2 * SIGNALS * preset.model.backbone.width
    assert found.tokens["to_image"] == SIGNALS
    assert costs.encoders["to_image"].forward > 0
    costs_of_image = costs.projectors["to_image"]
    # Backward through the UNet, and twice through the projector.
    assert costs_of_image.backward > costs_of_image.forward / 2


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


def precomputed(run: RunConfig) -> PrecomputeWorker:
    """Make the complete cache of a run's data in its output folder; return who made it."""
    worker = PrecomputeWorker(run, None, batch=3, threads=1, device="cpu")
    stores = feature_stores(Path(run.output), worker.encoder_ids)
    for store in stores.values():
        store.create()
    shards = ShardSet([Path(folder) for folder in run.data])
    media = distinct_media(shards, run.system.model, run.system.model.outputs, stores)
    for item in plan_ranges(media, stores, 4)[1]:
        assert isinstance(worker(item), RangeResult)
    return worker


def reader_of(worker: PrecomputeWorker, run: RunConfig) -> CacheReader:
    stores = feature_stores(Path(run.output), worker.encoder_ids)
    return CacheReader(model=run.system.model, stores=stores, command="")


def test_a_precomputed_cache_has_each_target_once_and_as_in_training(run: RunConfig) -> None:
    worker = precomputed(run)
    reader = reader_of(worker, run)
    model = build(
        run.system.model, run.settings, weights="random", seed=run.seed, latents_given=True
    )
    set_trainable(model, run.settings.trainable)
    assert worker.encoder_ids == encoder_ids(run, model)
    shards = ShardSet([Path(folder) for folder in run.data])
    media = distinct_media(shards, run.system.model, run.system.model.outputs, reader.stores)
    texts = {captions(shards[n].turns, {})[0] for n in range(len(shards))}
    shown = {shards[n].media[0].sha256: shards[n].media[0] for n in range(len(shards))}
    counts = {kind: len(found.prefixes_k) for kind, found in media.items()}
    # All images of these data are generation targets.
    expected = {"image": 0, "to_image": len(texts), "to_image.latents": len(shown)}
    assert counts == expected
    branch = build(run.system.model, run.settings, weights="random", seed=0).output_branches()
    generator, spec = branch["to_image"].generator, branch["to_image"].spec
    tokenizers = build_caption_tokenizers([spec], weights="random")
    close = {"atol": 1e-5, "rtol": 1e-5}
    for text in texts:
        embeds = generator.embed(torch.tensor([tokenizers["to_image"](text)]))[0]
        torch.testing.assert_close(reader.caption("to_image", text), embeds, **close)
    for medium in shown.values():
        latents = generator.encode(read_target(medium, spec)[None])[0]
        torch.testing.assert_close(reader.target("to_image.latents", medium), latents, **close)


def test_signal_tokens_are_never_truncated(
    preset: System, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """A sample whose signal tokens do not fit is skipped instead."""
    sample_tokenizer = SampleTokenizer(
        preset.model, tokenizer, prompt="plain", max_tokens=3, outputs=preset.model.outputs
    )
    length = sample_tokenizer.length("x", samples[0].turns, ["image"])
    assert length.skip_reason == "sample x: its media do not fit in 3 tokens"
    batch = pack(encode_all(encoder_of(preset, tokenizer), samples))
    assert int((batch.labels_bt >= preset.model.backbone.vocabulary).sum()) == 2 * SIGNALS
    assert (batch.labels_bt[batch.media["image"].media_mask_bt] == IGNORED).all()
