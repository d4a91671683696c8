"""Encoded samples: which tokens are targets, the positions of media, and rejected samples."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Medium, Sample, SampleError, Turn
from etl.storage.shards import ShardSet
from model.batch import IGNORED
from model.presets import system
from model.pretraining.build import SentenceReader, build_sentence_tokenizer
from model.spec import ModelSpec
from pipeline.data.collate import collate, dummy_example
from pipeline.data.encode import Example, SampleEncoder
from tests.worlds import sound_question


def dialogue(captions: ShardSet, *texts: str) -> Sample:
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False))
    return replace(captions[0], turns=turns)


def targets(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def test_in_chat_only_the_answers_are_targets(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    example = encoder.encode(
        dialogue(captions, "<image>\nWhich digit is red?", "3", "Where?", "centre")
    )
    assert targets(example, tokenizer) == " 3</s> centre</s>"
    assert example.kinds.count("image") == 36
    text = [i for i, kind in zip(example.ids, example.kinds, strict=True) if not kind]
    assert tokenizer.decode(text) == ("<s>\nWhich digit is red? 3</s>Where? centre</s>")


def test_tokenizing_in_advance_gives_the_same_example(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    sample = dialogue(captions, "<image>\nWhich digit is red?", "3", "Where?", "centre")
    one, two = encoder.encode(sample), encoder.encode(sample, encoder.tokenize(sample))
    assert (one.ids, one.labels, one.kinds) == (two.ids, two.labels, two.kinds)
    assert torch.equal(one.media[0].input_values, two.media[0].input_values)
    with pytest.raises(SampleError, match="1 media, 0 placeholders"):
        encoder.tokenize(dialogue(captions, "Which digit?", "3"))


def test_a_prompt_is_a_prefix_of_its_training_example(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    sample = dialogue(captions, "<image>\nWhich digit is red?", "3")
    prompt, example = encoder.encode_prompt(sample), encoder.encode(sample)
    assert example.ids[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(example.ids[len(prompt.ids) :]) == " 3</s>"


def test_the_plain_prompt_is_the_medium_and_its_caption(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    example = encoder.encode(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    assert targets(example, tokenizer) == "a red 3.</s>"
    assert example.kinds == ["", *["image"] * 36, *[""] * (len(example.ids) - 37)]


def test_special_tokens_in_a_text_are_text(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    example = encoder.encode(dialogue(captions, "<image>", "a</s>b"))
    assert example.ids.count(tokenizer.eos_token_id) == 1


def test_truncation_never_cuts_a_medium(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    sample = dialogue(captions, "<image>", "a red 3 at the top left.")
    truncated = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=40).encode(sample)
    assert len(truncated.ids) == 40
    assert truncated.kinds.count("image") == 36
    short = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=30)
    with pytest.raises(SampleError, match="do not fit in 30 tokens"):
        short.encode(sample)


@pytest.mark.parametrize("size", [0, 10, 400])
def test_a_broken_image_is_rejected_with_the_sample_s_id(
    size: int, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    medium = captions[0].media[0]
    broken = replace(captions[0], media=(replace(medium, data=medium.data[:size]),))
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    with pytest.raises(SampleError, match=f"sample {broken.id}: its image cannot be decoded"):
        encoder.encode(broken)


def test_a_medium_that_the_model_does_not_take_is_rejected(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    tone = Medium(kind="audio", data=b"x", mime="audio/wav", sha256="")
    sample = replace(
        captions[0], turns=(Turn(role="user", text="<audio>"),), media=(tone,), id="tone"
    )
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    with pytest.raises(SampleError, match="sample tone: holds audio, the model takes image"):
        encoder.encode(sample)


def test_pixels_stay_uint8(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    pixels = encoder.encode(captions[0]).media[0].input_values
    assert pixels.shape == (1, 3, 48, 48)
    assert pixels.dtype == torch.uint8
    assert pixels.min() < pixels.max()


@pytest.mark.parametrize(("side", "offset"), [("right", 0), ("left", 39)])
def test_collation_pads_to_the_longest(
    side: str, offset: int, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=40)
    example = encoder.encode(captions[0])
    batch = collate([example, dummy_example(7, seq2seq=False)], pad_id=7, side=side)
    assert batch.ids_bt.shape == (2, 40)
    assert batch.attention_bt.sum(1).tolist() == [40, 1]
    assert batch.attention_bt[1, offset] == 1
    assert batch.media["image"].media_mask_bt.sum(1).tolist() == [36, 0]
    assert batch.media["image"].input_values.shape == (1, 1, 3, 48, 48)
    assert torch.all(batch.labels_bt[1] == IGNORED)


@pytest.fixture
def reader() -> SentenceReader:
    tokenizer = build_sentence_tokenizer("", weights="random")
    return SentenceReader(tokenizer=tokenizer, max_text=8, kind="image", pairs=True)


def test_a_pair_has_its_sentence_in_another_vocabulary(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=reader)
    example = encoder.encode(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    without = plain.encode(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    assert (example.ids, example.labels) == (without.ids, without.labels)
    assert example.sentence == reader.ids("a red 3.")
    assert len(example.sentence) == 8
    batch = collate([example, dummy_example(0, seq2seq=False)], pad_id=0, side="right")
    assert batch.sentences is not None
    assert batch.sentences.mask_bl.sum(1).tolist() == [8, 0]


def test_sentences_alone_are_encoded_as_captions_and_no_medium_is_decoded(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    sample = dialogue(captions, "<image>\nDescribe.", "a red 3.")
    broken = replace(sample, media=tuple(replace(m, data=b"") for m in sample.media))
    encoder = SampleEncoder(spec, tokenizer, prompt="sentences", max_tokens=200, sentences=reader)
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    assert encoder.tokenize(broken) is None
    example, caption = encoder.encode(broken), plain.encode(sample)
    assert (example.ids, example.labels) == (caption.ids, caption.labels)
    assert example.kinds == caption.kinds
    assert example.media[0].input_values.numel() == 0


@pytest.mark.parametrize(
    ("texts", "media", "message"),
    [
        (("Describe.", "a red 3."), 0, "0 media, want one image"),
        (("<image><image>", "a red 3."), 2, "2 media, want one image"),
        (("<image>", ""), 1, "has no text from the assistant"),
    ],
)
def test_a_sample_that_is_not_a_pair_is_rejected(
    texts: tuple[str, ...],
    media: int,
    message: str,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=reader)
    sample = replace(dialogue(captions, *texts), media=captions[0].media * media)
    with pytest.raises(SampleError, match=message):
        encoder.encode(sample)


def test_text_alone_is_enough_for_a_reader_without_pairs(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    lenient = replace(reader, pairs=False)
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=lenient)
    example = encoder.encode(replace(dialogue(captions, "Describe.", "a red 3."), media=()))
    assert not example.media
    assert example.sentence == reader.ids("a red 3.")


class Features:
    """Features of sounds instead of the sounds."""

    kinds = ("audio",)

    def medium(self, medium: Medium) -> torch.Tensor:
        return torch.zeros(1, 100, 128)


def test_a_sound_longer_than_the_encoder_hears_is_reported(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    spec = system("digits_audio").model  # which hears two seconds
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    assert encoder.encode(sound_question(2.0)).cut == ""
    assert encoder.encode(sound_question(0.3)).cut == ""
    reason = "audio of 3.5 s, of which the encoder hears 2 s"
    assert encoder.encode(sound_question(3.5)).cut == reason
    assert encoder.encode_prompt(sound_question(3.5)).cut == reason
    # With features the sound is not decoded: its column says how long it is.
    cached = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200, features=Features())  # type: ignore[arg-type]
    assert cached.encode(sound_question(0.1, duration=3.5)).cut == reason
    assert cached.encode(sound_question(3.5)).cut == ""
