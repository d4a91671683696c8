"""Lengths equal those of encoded examples, and are computed once for the same tokenization."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from etl.storage.shards import ShardSet
from model.build import build_tokenizer
from model.presets import system
from model.spec import ModelSpec
from pipeline.data import lengths as module
from pipeline.data.encode import SampleEncoder
from pipeline.data.lengths import read_lengths
from pipeline.data.tokenize import SampleTokenizer
from tests.worlds import caption_shards, instruct_shards


@pytest.mark.parametrize("prompt", ["plain", "chat"])
def test_lengths_are_those_of_encoded_examples(
    prompt: str, tmp_path: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    folders = [caption_shards(tmp_path / "a", 7), instruct_shards(tmp_path / "b", 9)]
    sample_tokenizer = SampleTokenizer(spec, tokenizer, prompt=prompt, max_tokens=90)
    found = read_lengths(folders, sample_tokenizer, spec.modalities, fallback=tmp_path)
    encoder = SampleEncoder(spec, tokenizer, prompt=prompt, max_tokens=90)
    shards = ShardSet(folders)
    assert len(found) == 16
    for index in range(16):
        assert index not in found.skip_reasons
        example = encoder.encode(shards[index])
        assert found.tokens_n[index] == len(example.ids)
        assert found.targets_n[index] == sum(label >= 0 for label in example.labels[1:])
        assert found.media_n["image"][index] == len(example.media)


def test_a_seq2seq_backbone_s_answer_counts(tmp_path: Path) -> None:
    spec = system("blip_2_flan_t5_xxl").tiny().model
    tokenizer = build_tokenizer(spec, weights="random")
    folder = caption_shards(tmp_path, 3)
    sample_tokenizer = SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=200)
    found = read_lengths([folder], sample_tokenizer, spec.modalities, fallback=tmp_path)
    encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    example = encoder.encode(ShardSet([folder])[1])
    assert example.answer is not None
    assert found.targets_n[1] == len(example.answer)
    assert found.tokens_n[1] == len(example.ids) + len(example.answer)


def test_lengths_are_computed_once(
    tmp_path: Path,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = caption_shards(tmp_path, 5)
    first = read_lengths(
        [folder],
        SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=90),
        spec.modalities,
        fallback=tmp_path,
    )

    def never(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_write_lengths", never)
    again = SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=90)
    assert (
        read_lengths([folder], again, spec.modalities, fallback=tmp_path).tokens_n.tolist()
        == first.tokens_n.tolist()
    )
    for other in (
        SampleTokenizer(spec, tokenizer, prompt="chat", max_tokens=90),
        SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=91),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            read_lengths([folder], other, spec.modalities, fallback=tmp_path)


def test_several_processes_compute_the_same_lengths(
    tmp_path: Path,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = caption_shards(tmp_path / "data", 300)
    sample_tokenizer = SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=90)
    single = read_lengths(
        [folder], sample_tokenizer, spec.modalities, fallback=tmp_path
    ).tokens_n.tolist()
    for cached in (folder / ".lengths").glob("*.arrow"):
        cached.unlink()
    monkeypatch.setattr(module, "_MAX_SINGLE_PROCESS", 10)
    several = read_lengths(
        [folder], sample_tokenizer, spec.modalities, fallback=tmp_path
    ).tokens_n.tolist()
    assert several == single
