"""The loader: known media are not decoded, and stand beside others in one micro-batch."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.spec import ModelSpec
from pipeline.data.collate import collate, pack
from pipeline.data.encode import Example, SampleEncoder
from pipeline.feature_cache.cache_key import Producer, medium_key
from pipeline.feature_cache.feature_file import write_part
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore

SHAPE = (1, 36, 128)


def broken(sample: Sample) -> Sample:
    """Return a sample whose picture cannot be decoded; its bytes are others, its digest lies."""
    medium = sample.media[0]
    return replace(sample, media=(replace(medium, data=medium.data[:200]),))


def key_of(sample: Sample, spec: ModelSpec) -> bytes:
    return medium_key(hashlib.sha256(sample.media[0].data).digest(), spec.input_branch("image"))


@pytest.fixture
def lookup(tmp_path: Path, spec: ModelSpec, captions: ShardSet) -> CacheReader:
    """The features of a picture, and of one that nobody could decode."""
    producer = Producer(role="encoder", spec={}, weights="", dtype="float32")
    store = FeatureStore(tmp_path, producer)
    store.create()
    known = captions[0], broken(captions[1])
    rows = [
        Example(key=key_of(one, spec), features=torch.full(SHAPE, float(number)))
        for number, one in enumerate(known)
    ]
    write_part(store.folder, rows)
    return CacheReader(slots={"image": spec.input_branch("image")}, stores={"image": store})


@pytest.fixture
def encoder(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, lookup: CacheReader
) -> SampleEncoder:
    return SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, features=lookup)


def test_known_media_are_not_decoded(encoder: SampleEncoder, captions: ShardSet) -> None:
    (medium,) = encoder.row(broken(captions[1])).media
    assert medium.input_values is None
    assert medium.features is not None
    assert torch.equal(medium.features, torch.ones(SHAPE))


def test_a_digest_in_a_shard_that_lies_gives_no_other_mediums_features(
    encoder: SampleEncoder, captions: ShardSet
) -> None:
    medium = replace(captions[2].media[0], data=b"no picture", sha256=captions[0].media[0].sha256)
    liar = replace(captions[2], media=(medium,))
    with pytest.raises(SampleError, match="cannot be decoded"):
        encoder.row(liar)


def test_all_but_the_media_is_as_without(
    encoder: SampleEncoder, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    for number in (0, 2):
        with_features, without = encoder.row(captions[number]), plain.row(captions[number])
        assert replace(with_features, media=()) == replace(without, media=())
        assert with_features.media[0].first == without.media[0].first


@pytest.mark.parametrize("packed", [True, False])
def test_known_and_unknown_media_stand_in_one_micro_batch(
    packed: bool, encoder: SampleEncoder, spec: ModelSpec, captions: ShardSet
) -> None:
    rows = [encoder.row(captions[number]) for number in (2, 0, 3)]
    batch = pack(rows) if packed else collate(rows, pad_id=0, side="right")
    image = batch.media["image"]
    assert image.input_values.shape == (2, 1, 3, 48, 48)
    assert image.features is not None
    assert image.features.shape == (1, *SHAPE)
    assert image.cached_m is not None
    assert image.cached_m.tolist() == [False, True, False]
    assert image.keys == (key_of(captions[2], spec), key_of(captions[3], spec))
    assert int(image.media_mask_bt.sum()) == 3 * 36
    all_known = pack([encoder.row(captions[0])]).media["image"]
    assert len(all_known.input_values) == 0
    assert all_known.to("cpu").features is not None


def test_a_lookup_travels_to_other_processes(
    lookup: CacheReader, spec: ModelSpec, captions: ShardSet
) -> None:
    there = pickle.loads(pickle.dumps(lookup))
    found = there.find(captions[0].media[0])
    assert found.features is not None
    assert there.find(captions[2].media[0]).features is None
    assert CacheReader().find(captions[0].media[0]) is None
