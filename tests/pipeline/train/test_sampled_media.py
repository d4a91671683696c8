"""Media in answers of GRPO: what they depend on, that rewards see them, and what is learnt."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample, Turn
from model.batch import Batch
from model.build import build_policy, build_tokenizer
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM, condition_logps
from model.presets import system
from model.sampling import token_rng
from model.signal_decoding import Condition
from model.spec.rlhf import Grpo
from pipeline.data.collate import dummy_example, pack
from pipeline.data.encode import SampleEncoder
from pipeline.data.generation_targets import EarlierMedia
from pipeline.data.loader import MicroBatch
from pipeline.data.preferences import Role
from pipeline.data.rollout_prompts import RolloutEncoder, RolloutPrompt, RolloutTokenizer
from pipeline.data.tokenize import SampleTokenizer
from pipeline.train import rollouts
from pipeline.train.losses import compute_losses, count_losses
from pipeline.train.preference_losses import preference_terms
from pipeline.train.rewards import Answer, Reward
from pipeline.train.rollouts import RolloutSettings, with_rollouts
from pipeline.train.sampled_media import SampledMedium, generate_media, sample_condition
from tests.worlds import generation_sample

OBJECTIVE = Grpo(group=3, max_new_tokens=6, media_noise=0.2)
SIGNALS = 20.0
"""Factor of the logits of random signal tokens, so that answers hold media."""
KEY = (0, 7, 1, 0)


def few_steps() -> Any:
    """Return a tiny model that generates pictures, videos and sounds in two steps."""
    spec = system("digits_any").tiny().model
    outputs = (replace(one, generator=replace(one.generator, steps=2)) for one in spec.outputs)
    return replace(spec, outputs=tuple(outputs))


SPEC = few_steps()
IMAGE = SPEC.outputs[0]


@pytest.fixture(scope="module")
def policy() -> PreferenceLM:
    stage = system("digits_any").tiny().stage("rlhf")
    stage = replace(stage, objective=OBJECTIVE)
    model = build_policy(SPEC, stage, weights="random")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
            if name.startswith("outputs.") and name.endswith(".head.weight"):
                weight.mul_(SIGNALS)
    add_reference(model.backbone, stage.peft)
    model.with_reference = False
    return model


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return build_tokenizer(SPEC, weights="random")


def after_a_picture(sample: Sample) -> Sample:
    """Return a dialogue in which the assistant has generated a picture before."""
    turns = (Turn(role="user", text="7"), Turn(role="assistant", text="<image>"), *sample.turns)
    return replace(sample, turns=turns, media=(*sample.media, *sample.media))


@pytest.fixture
def prompts(words: PreTrainedTokenizerBase) -> list[RolloutPrompt]:
    one = SampleEncoder(
        SPEC,
        words,
        prompt="chat",
        max_tokens=512,
        generation_targets=EarlierMedia(SPEC.outputs),
    )
    encoder = RolloutEncoder(one, OBJECTIVE)
    *samples, last = (generation_sample(0, number) for number in range(7))
    return [
        encoder.encode(sample, position=number)
        for number, sample in enumerate([*samples, after_a_picture(last)])
    ]


def answered(
    groups: Sequence[Sequence[RolloutPrompt]],
    policy: PreferenceLM,
    words: PreTrainedTokenizerBase,
    reward: Reward,
    *,
    synced: bool = False,
    **changes: Any,
) -> list[Batch]:
    """Return the batches of one step whose micro-batches hold these prompts."""
    dummy = dummy_example(0, seq2seq=False, roles=(int(Role.NONE),))
    items = [
        MicroBatch(batch=pack(group or [dummy]), samples=len(group), prompts=tuple(group))
        for group in groups
    ]
    settings = RolloutSettings(
        objective=replace(OBJECTIVE, **changes),
        rewards=(reward,),
        seed=0,
        end_ids=(words.eos_token_id,),
        pad_id=words.pad_token_id,
        synced=synced,
    )
    (step,) = with_rollouts(iter([items]), policy, words, settings)
    return [item.batch for item in step]


class Seen:
    """A reward that remembers the answers: the number of their media."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, answer: Answer) -> float:
        self.answers.append(answer)
        return float(len(answer.media))

    @property
    def files(self) -> list[list[bytes]]:
        return [[medium.data for medium in answer.media] for answer in self.answers]


@pytest.mark.usefixtures("alone")
def test_rewards_see_the_media_of_each_answer(
    policy: PreferenceLM, prompts: list[RolloutPrompt], words: PreTrainedTokenizerBase
) -> None:
    seen = Seen()
    (batch,) = answered([prompts], policy, words, seen)
    media = [medium for answer in seen.answers for medium in answer.media]
    assert {medium.kind for medium in media} == {"image", "video", "audio"}
    assert any(not answer.media for answer in seen.answers)
    assert any(answer.media and answer.text for answer in seen.answers)
    first = next(medium for medium in media if medium.kind == "image")
    assert first.mime == "image/png"
    with Image.open(io.BytesIO(first.data)) as picture:
        assert picture.size == (IMAGE.generator.image_size,) * 2
        assert np.asarray(picture).std() > 1
    assert batch.sequences is not None
    assert batch.sequences.rewards_q is not None
    assert batch.sequences.rewards_q.tolist() == [len(answer.media) for answer in seen.answers]
    assert batch.sampled_media == len(media)
    # The picture of an earlier answer stands before each answer, and is none of theirs.
    assert batch.count("to_image") == OBJECTIVE.group + sum(one.kind == "image" for one in media)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("synced", [False, True])
def test_media_depend_on_seed_and_sample_alone(
    synced: bool,
    policy: PreferenceLM,
    prompts: list[RolloutPrompt],
    words: PreTrainedTokenizerBase,
) -> None:
    """Not on the micro-batch; not a byte."""
    together, apart = Seen(), Seen()
    answered([prompts], policy, words, together)
    answered([prompts[:1], [], prompts[1:]] if synced else [prompts[:1], prompts[1:]],
             policy, words, apart, synced=synced)  # fmt: skip
    assert together.files == apart.files


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("updates", [1, 2])
def test_the_update_reads_the_sampled_conditions(
    updates: int,
    policy: PreferenceLM,
    prompts: list[RolloutPrompt],
    words: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the policy says of them is what it has said as it decoded, up to rounding."""
    pairs: list[tuple[Condition, SampledMedium]] = []

    def recorded(branch: Any, medium: Condition, **options: Any) -> SampledMedium:
        sampled = sample_condition(branch, medium, **options)
        pairs.append((medium, sampled))
        return sampled

    monkeypatch.setattr(rollouts, "sample_condition", recorded)
    (batch,) = answered([prompts], policy, words, Seen(), updates=updates)
    out = policy.train()(batch, ["to_image", "to_video", "to_audio"])
    policy.eval()
    expected = []
    for kind in policy.output_branches():
        for medium, sampled in pairs:
            target = sampled.target
            if target.kind == kind:
                noise = torch.tensor([target.noise])
                expected.append(condition_logps(target.cached_embeds, medium.condition_1lw, noise))
    found = out.logps_o[-len(pairs) :]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-3)
    # The mean square of standard normal noise is about 1.
    assert found.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert batch.sequences is not None
    old_logps_o = batch.sequences.old_logps_o
    assert (old_logps_o is None) == (updates == 1)
    if old_logps_o is not None:
        torch.testing.assert_close(out.logps_o, old_logps_o)
    terms = preference_terms(replace(OBJECTIVE, updates=updates, per_token=True))
    losses = compute_losses(terms, out)
    assert {name: one.count for name, one in losses.items()} == count_losses(terms, batch)
    assert losses["grpo"].count == len(out.logps_o)


@pytest.mark.usefixtures("alone")
def test_without_noise_media_are_those_of_inference(
    policy: PreferenceLM, prompts: list[RolloutPrompt], words: PreTrainedTokenizerBase
) -> None:
    seen = Seen()
    (batch,) = answered([prompts], policy, words, seen, media_noise=0.0)
    assert sum(map(len, seen.files)) > 1
    assert batch.sampled_media == 0


def medium(kind: str = "image", seed: int = 0, start: int = 2) -> Condition:
    branch = next(one for one in SPEC.outputs if one.modality == kind)
    shape = (1, *branch.generator.condition_shape)
    return Condition(0, start, kind, torch.randn(shape, generator=token_rng(seed)) * 3)


def sampled_of(one: SampledMedium) -> Tensor:
    assert one.target.cached_embeds is not None
    return one.target.cached_embeds


def test_noise_is_relative_and_keyed() -> None:
    """The first noise of the generator is that of all answers to the prompt."""
    given = medium()
    one = sample_condition(IMAGE, given, noise=0.2, key=KEY)
    condition_lw, noise = sampled_of(one), one.target.noise
    assert noise is not None
    condition = given.condition_1lw[0]
    assert noise == pytest.approx(0.2 * float(condition.square().mean().sqrt()))
    assert float((condition_lw - condition).std()) == pytest.approx(noise, rel=0.1)
    assert (one.start, one.end) == (2, 2 + IMAGE.signals)
    again = sample_condition(IMAGE, given, noise=0.2, key=KEY)
    assert torch.equal(sampled_of(again), condition_lw)
    assert again.seed == one.seed
    seeds = set()
    for key, shares_seed in (
        ((0, 7, 2, 0), True),  # another answer
        ((0, 7, 1, 1), False),  # another medium
        ((0, 8, 1, 0), False),  # another sample
        ((1, 7, 1, 0), False),  # another run
    ):
        other = sample_condition(IMAGE, given, noise=0.2, key=key)
        assert not torch.equal(sampled_of(other), condition_lw)
        assert (other.seed == one.seed) == shares_seed
        seeds.add(other.seed)
    assert len(seeds) == 4
    exact = sample_condition(IMAGE, given, noise=0.0, key=KEY)
    assert torch.equal(sampled_of(exact), condition)


@pytest.mark.usefixtures("alone")
def test_media_are_in_the_order_of_the_conditions(policy: PreferenceLM) -> None:
    """Also more than are made at a time, and whatever else is made."""
    branches = {one.modality: one for one in SPEC.outputs}
    kinds = ["audio", *["image"] * 17, "video", "image"]
    sampled = [
        sample_condition(branches[kind], medium(kind, seed), noise=0.1, key=(0, seed, 0, 0))
        for seed, kind in enumerate(kinds)
    ]
    made = generate_media(policy, sampled, synced=True)
    assert [one.kind for one in made] == kinds
    for number in (0, 5, 18, 19):
        (alone,) = generate_media(policy, [sampled[number]], synced=False)
        assert alone == made[number]
    assert generate_media(policy, [], synced=True) == []


@pytest.fixture
def length_of(words: PreTrainedTokenizerBase) -> Callable[..., Any]:
    """Return what counts the tokens of a sample for a model with these output branches."""

    def length(sample: Sample, outputs: Sequence[Any]) -> Any:
        one = SampleTokenizer(SPEC, words, prompt="chat", max_tokens=512, outputs=outputs)
        counter = RolloutTokenizer(one, OBJECTIVE, outputs)
        return counter.length(sample.id, sample.turns, [medium.kind for medium in sample.media])

    return length


def test_an_answer_may_hold_media_that_the_model_generates(length_of: Callable[..., Any]) -> None:
    sample = generation_sample(0, 0)
    found = length_of(sample, SPEC.outputs)
    text = length_of(replace(sample, turns=(sample.turns[0], _says("7")), media=()), SPEC.outputs)
    assert found == text
    assert not found.skip_reason
    # A medium that begins with the last token is completed.
    longest = OBJECTIVE.max_new_tokens + max(one.signals for one in SPEC.outputs) - 1
    assert found.targets == OBJECTIVE.group * longest
    reason = "its answer holds image, the model generates"
    assert length_of(sample, ()).skip_reason == f"sample {sample.id}: {reason} text alone"
    assert reason in length_of(sample, SPEC.outputs[1:]).skip_reason


def _says(text: str) -> Turn:
    return Turn(role="assistant", text=text)
