"""Samples of preferences: their sequences, what of them is a target, and their shared media."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from etl.digits.records import question_sample
from etl.storage.schema import Sample, SampleError, Turn
from etl.storage.shards import ShardSet, write_folder
from model.batch import IGNORED
from model.spec import ModelSpec
from model.spec.rlhf import Dpo, Dress, Kto, Preference
from pipeline.data.collate import dummy_example, pack
from pipeline.data.encode import SampleEncoder
from pipeline.data.lengths import read_lengths
from pipeline.data.preferences import PreferenceEncoder, PreferenceTokenizer, Role
from pipeline.data.readers.corrupted import corrupt
from pipeline.data.tokenize import SampleTokenizer
from tests.worlds import preference_sample

GOOD = Dress().good


def tokenizer_of(
    objective: Preference, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> PreferenceTokenizer:
    one = SampleTokenizer(spec, tokenizer, prompt="chat", max_tokens=192)
    return PreferenceTokenizer(one, objective)


def encoder_of(
    objective: Preference, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> PreferenceEncoder:
    one = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=192)
    return PreferenceEncoder(one, tokenizer_of(objective, spec, tokenizer), seed=0)


@pytest.mark.parametrize(
    ("objective", "texts"),
    [
        (Dpo(), ["<s>\nQ? 3</s>", "<s>\nQ? 8</s>"]),
        (Kto(), ["<s>\nQ? 3</s>", "<s>\nQ? 8</s>"]),
        (Dpo(media_weight=1.0), ["<s>\nQ? 3</s>", "<s>\nQ? 8</s>", "<s>\nQ? 3</s>"]),
        (
            Dress(),
            [
                f"<s>{GOOD}\n\nQ? 3</s>",
                "<s>That is the blue one.\n\nQ? 8</s>",
                "<s>\nQ? 8</s>That is the blue one. 3</s>",
            ],
        ),
        (
            Dress(good="Right.", refinement=False),
            ["<s>Right.\n\nQ? 3</s>", "<s>That is the blue one.\n\nQ? 8</s>"],
        ),
    ],
)
def test_each_sequence_ends_with_its_only_target(
    objective: Preference, texts: list[str], spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    sample = preference_sample(0, question="Q?", chosen="3", rejected="8")
    found = tokenizer_of(objective, spec, tokenizer).tokenize(
        sample.id, sample.turns, ["image"], sample.rejected, sample.feedback
    )
    for sequence, text in zip(found, texts, strict=True):
        tokens = sequence.tokens
        spoken = [i for i, kind in zip(tokens.ids, tokens.kinds, strict=True) if not kind]
        assert tokenizer.decode(spoken) == text
        answer = " 8</s>" if sequence.role is Role.REJECTED else " 3</s>"
        target = [label for label in tokens.labels if label != IGNORED]
        assert tokenizer.decode(target) == answer


@pytest.mark.parametrize("objective", [Dpo(), Dpo(media_weight=1.0), Dress()])
def test_media_are_there_once(
    objective: Preference, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each sequence has its positions; only a corrupted image is another one."""
    samples = [preference_sample(n, question="Q?", chosen="3", rejected="8") for n in range(2)]
    encoder = encoder_of(objective, spec, tokenizer)
    examples = [encoder.encode(sample, position=n) for n, sample in enumerate(samples)]
    batch = pack(examples)
    images, sequences = batch.media["image"], batch.sequences
    assert sequences is not None
    assert images.input_values is not None
    assert images.order_e is not None
    corrupted = Role.CORRUPTED in sequences.roles_q.tolist()
    assert len(images.input_values) == (4 if corrupted else 2)
    each = len(sequences.roles_q) // 2
    assert images.order_e.tolist() == ([0, 0, 1, 2, 2, 3] if corrupted else [0] * each + [1] * each)
    assert sequences.samples_q.tolist() == [0] * each + [1] * each
    patches = spec.inputs[0].tokens
    assert int(images.media_mask_bt.sum()) == 2 * each * patches
    for number in range(2 * each):  # the first token of a sequence is no target
        (first,) = (batch.sequences_bt[0] == number).nonzero()[0].tolist()
        assert batch.labels_bt[0, first] == IGNORED


def test_a_corrupted_image_is_the_same_wherever_it_is_made(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    """It depends on seed and position, not on what was made before."""
    sample = preference_sample(0, question="Q?", chosen="3", rejected="8")
    encoder = encoder_of(Dpo(media_weight=1.0), spec, tokenizer)
    one, again, other = (encoder.encode(sample, position=n) for n in (5, 5, 6))
    values = [example.media[1].input_values for example in (one, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(values[0], one.media[0].input_values)


def test_a_corrupted_image_shows_a_fifth_at_most() -> None:
    image = Image.effect_noise((200, 100), 64)
    shares = [
        (part.width * part.height) / (200 * 100)
        for part in (corrupt(image, np.random.default_rng(n)) for n in range(200))
    ]
    assert max(shares) < 0.21
    assert min(shares) < 0.02
    with pytest.raises(ValueError, match="only images"):
        corrupt([image], np.random.default_rng(0))


@pytest.mark.parametrize("objective", [Dpo(), Dpo(media_weight=1.0), Dress()])
def test_lengths_are_those_of_encoded_examples(
    objective: Preference, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    samples = [preference_sample(n, question="Q?" * n, chosen="3", rejected="8") for n in range(5)]
    samples.append(replace(samples[0], rejected=(), feedback=(), id="plain"))
    folder = write_folder(tmp_path / "data", samples, job="test")
    counter = tokenizer_of(objective, spec, tokenizer)
    found = read_lengths([folder], counter, spec.modalities, fallback=tmp_path)
    assert found.skip_reasons == {5: "sample plain: has no rejected answer"}
    encoder, shards = encoder_of(objective, spec, tokenizer), ShardSet([folder])
    for row in range(5):
        example = encoder.encode(shards[row])
        assert found.tokens_n[row] == len(example.ids)
        assert found.targets_n[row] == sum(label >= 0 for label in example.labels)
        assert found.media_n["image"][row] == len(example.media)


def test_what_is_missing_is_said(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    sample = preference_sample(0, question="Q?", chosen="3", rejected="8")
    cases: list[tuple[Preference, Sample, str]] = [
        (Dpo(), replace(sample, rejected=()), "has no rejected answer"),
        (Dress(), replace(sample, feedback=()), "its rejected answer has no feedback"),
        (Dpo(), replace(sample, turns=sample.turns[:1]), "the last turn is not the assistant's"),
    ]
    for objective, broken, reason in cases:
        with pytest.raises(SampleError, match=reason):
            encoder_of(objective, spec, tokenizer).encode(broken)
    thumb_up = replace(sample, rejected=(), feedback=())
    assert encoder_of(Kto(), spec, tokenizer).encode(thumb_up).roles == (Role.CHOSEN,)
    thumb_down = replace(sample, turns=sample.turns[:-1], feedback=())
    down = encoder_of(Kto(), spec, tokenizer).encode(thumb_down)
    assert down.roles == (Role.REJECTED,)
    assert len(down.media) == 1
    with pytest.raises(SampleError, match="the last turn is not the assistant's"):
        encoder_of(Dpo(), spec, tokenizer).encode(thumb_down)


def test_a_dummy_belongs_to_no_sample(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(Dpo(), spec, tokenizer)
    batch = pack([dummy_example(0, seq2seq=False, roles=encoder.dummy_roles)])
    assert batch.sequences is not None
    assert batch.sequences.roles_q.tolist() == [Role.NONE]
    assert not batch.target_mask.any()


def test_prompts_ask_for_good_answers(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    """As DRESS has learnt them."""
    sample = question_sample(0, 0)
    sample = replace(sample, turns=(Turn(role="user", text="<image>\nQ?"), sample.turns[1]))
    plain = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=192)
    asked = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=192, feedback="Right.")
    texts = []
    for encoder in (plain, asked):
        example = encoder.encode_prompt(sample)
        spoken = [i for i, kind in zip(example.ids, example.kinds, strict=True) if not kind]
        texts.append(tokenizer.decode(spoken))
    assert texts == ["<s>\nQ?", "<s>Right.\n\nQ?"]
