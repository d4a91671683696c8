"""What a sample becomes: which tokens are targets, where media stand, what is refused."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Medium, Sample, SampleError, Turn
from etl.storage.shards import ShardSet
from model.batch import IGNORED
from model.pretraining.build import SentenceReader, build_sentence_tokenizer
from model.spec import ModelSpec
from pipeline.data.collate import collate, dummy_example
from pipeline.data.encode import Example, SampleEncoder


def dialogue(captions: ShardSet, *texts: str) -> Sample:
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False))
    return replace(captions[0], turns=turns)


def targets(row: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_chat_learns_the_answers_and_nothing_else(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    row = encoder.row(dialogue(captions, "<image>\nWhich digit is red?", "3", "Where?", "centre"))
    assert targets(row, tokenizer) == " 3</s> centre</s>"
    assert row.kinds.count("image") == 36
    text = [i for i, kind in zip(row.ids, row.kinds, strict=True) if not kind]
    assert tokenizer.decode(text) == ("<s>\nWhich digit is red? 3</s>Where? centre</s>")


def test_a_text_that_is_laid_out_before_gives_the_same_row(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    sample = dialogue(captions, "<image>\nWhich digit is red?", "3", "Where?", "centre")
    at_once, later = encoder.row(sample), encoder.row(sample, encoder.draft(sample))
    assert (at_once.ids, at_once.labels, at_once.kinds) == (later.ids, later.labels, later.kinds)
    assert torch.equal(at_once.media[0].input_values, later.media[0].input_values)
    with pytest.raises(SampleError, match="1 media, 0 used"):
        encoder.draft(dialogue(captions, "Which digit?", "3"))


def test_a_question_is_a_prefix_of_its_training_row(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    sample = dialogue(captions, "<image>\nWhich digit is red?", "3")
    asked, whole = encoder.question(sample), encoder.row(sample)
    assert whole.ids[: len(asked.ids)] == asked.ids
    assert tokenizer.decode(whole.ids[len(asked.ids) :]) == " 3</s>"


def test_plain_is_the_medium_and_its_caption(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    row = encoder.row(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    assert targets(row, tokenizer) == "a red 3.</s>"
    assert row.kinds == ["", *["image"] * 36, *[""] * (len(row.ids) - 37)]


def test_special_tokens_in_a_text_are_text(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    row = encoder.row(dialogue(captions, "<image>", "a</s>b"))
    assert row.ids.count(tokenizer.eos_token_id) == 1


def test_truncation_never_cuts_a_medium(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    sample = dialogue(captions, "<image>", "a red 3 at the top left.")
    cut = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=40).row(sample)
    assert len(cut.ids) == 40
    assert cut.kinds.count("image") == 36
    short = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=30)
    with pytest.raises(SampleError, match="do not fit in 30 tokens"):
        short.row(sample)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_broken_picture_is_refused_by_name(
    keep: int, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    medium = captions[0].media[0]
    broken = replace(captions[0], media=(replace(medium, data=medium.data[:keep]),))
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    with pytest.raises(SampleError, match=f"sample {broken.id}: its image cannot be decoded"):
        encoder.row(broken)


def test_a_medium_that_the_model_does_not_take_is_refused(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    tone = Medium(kind="audio", data=b"x", mime="audio/wav", sha256="")
    sample = replace(
        captions[0], turns=(Turn(role="user", text="<audio>"),), media=(tone,), id="tone"
    )
    encoder = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=200)
    with pytest.raises(SampleError, match="sample tone: holds audio, the model takes image"):
        encoder.row(sample)


def test_pixels_stay_bytes(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    pixels = encoder.row(captions[0]).media[0].input_values
    assert pixels.shape == (1, 3, 48, 48)
    assert pixels.dtype == torch.uint8
    assert pixels.min() < pixels.max()


@pytest.mark.parametrize(("side", "first"), [("right", 0), ("left", 39)])
def test_collation_pads_to_the_longest(
    side: str, first: int, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=40)
    row = encoder.row(captions[0])
    batch = collate([row, dummy_example(7, seq2seq=False)], pad_id=7, side=side)
    assert batch.ids_bt.shape == (2, 40)
    assert batch.attention_bt.sum(1).tolist() == [40, 1]
    assert batch.attention_bt[1, first] == 1
    assert batch.media["image"].media_mask_bt.sum(1).tolist() == [36, 0]
    assert batch.media["image"].input_values.shape == (1, 1, 3, 48, 48)
    assert torch.all(batch.labels_bt[1] == IGNORED)


@pytest.fixture
def reader() -> SentenceReader:
    tokenizer = build_sentence_tokenizer("", weights="random")
    return SentenceReader(tokenizer=tokenizer, max_text=8, kind="image", pairs=True)


def test_a_pair_brings_its_sentence_in_another_vocabulary(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=reader)
    row = encoder.row(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    alone = plain.row(dialogue(captions, "<image>\nDescribe.", "a red 3."))
    assert (row.ids, row.labels) == (alone.ids, alone.labels)
    assert row.sentence == reader.ids("a red 3.")
    assert len(row.sentence) == 8
    batch = collate([row, dummy_example(0, seq2seq=False)], pad_id=0, side="right")
    assert batch.sentences is not None
    assert batch.sentences.mask_bl.sum(1).tolist() == [8, 0]


def test_sentences_alone_are_laid_out_as_captions_are_and_no_medium_is_read(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    sample = dialogue(captions, "<image>\nDescribe.", "a red 3.")
    broken = replace(sample, media=tuple(replace(m, data=b"") for m in sample.media))
    encoder = SampleEncoder(spec, tokenizer, prompt="sentences", max_tokens=200, sentences=reader)
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    assert encoder.draft(broken) is None
    row, alone = encoder.row(broken), plain.row(sample)
    assert (row.ids, row.labels, row.kinds) == (alone.ids, alone.labels, alone.kinds)
    assert row.media[0].input_values.numel() == 0


@pytest.mark.parametrize(
    ("texts", "media", "says"),
    [
        (("Describe.", "a red 3."), 0, "0 media, want one image"),
        (("<image><image>", "a red 3."), 2, "2 media, want one image"),
        (("<image>", ""), 1, "the assistant says nothing"),
    ],
)
def test_what_is_no_pair_is_refused(
    texts: tuple[str, ...],
    media: int,
    says: str,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=reader)
    sample = replace(dialogue(captions, *texts), media=captions[0].media * media)
    with pytest.raises(SampleError, match=says):
        encoder.row(sample)


def test_text_alone_goes_with_a_reference_but_not_with_pairs(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    captions: ShardSet,
    reader: SentenceReader,
) -> None:
    lenient = replace(reader, pairs=False)
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, sentences=lenient)
    row = encoder.row(replace(dialogue(captions, "Describe.", "a red 3."), media=()))
    assert not row.media
    assert row.sentence == reader.ids("a red 3.")
