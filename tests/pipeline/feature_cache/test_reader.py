"""Media with cached features are not decoded, and share micro-batches with others."""

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
from pipeline.data.encode import SampleEncoder
from pipeline.feature_cache.cache_key import EncoderId, medium_key
from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore

SHAPE = (1, 36, 128)


def broken(sample: Sample) -> Sample:
    """Return a sample with an image that cannot be decoded and does not match its digest."""
    medium = sample.media[0]
    return replace(sample, media=(replace(medium, data=medium.data[:200]),))


def key_of(sample: Sample, spec: ModelSpec) -> bytes:
    return medium_key(hashlib.sha256(sample.media[0].data).digest(), spec.input_branch("image"))


@pytest.fixture
def cache(tmp_path: Path, spec: ModelSpec, captions: ShardSet) -> CacheReader:
    """The features of an image, and of one that cannot be decoded."""
    encoder_id = EncoderId(role="encoder", spec={}, weights="", dtype="float32")
    store = FeatureStore(tmp_path, encoder_id)
    store.create()
    cached = captions[0], broken(captions[1])
    rows = [
        FeatureRow(key=key_of(sample, spec), features=torch.full(SHAPE, float(number)))
        for number, sample in enumerate(cached)
    ]
    write_feature_file(store.folder, rows)
    return CacheReader(branches={"image": spec.input_branch("image")}, stores={"image": store})


@pytest.fixture
def encoder(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, cache: CacheReader
) -> SampleEncoder:
    return SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, features=cache)


def test_cached_media_are_not_decoded(encoder: SampleEncoder, captions: ShardSet) -> None:
    (medium,) = encoder.encode(broken(captions[1])).media
    assert medium.input_values is None
    assert medium.features is not None
    assert torch.equal(medium.features, torch.ones(SHAPE))


def test_a_wrong_digest_in_a_shard_does_not_return_another_medium_s_features(
    encoder: SampleEncoder, captions: ShardSet
) -> None:
    medium = replace(captions[2].media[0], data=b"no picture", sha256=captions[0].media[0].sha256)
    sample = replace(captions[2], media=(medium,))
    with pytest.raises(SampleError, match="cannot be decoded"):
        encoder.encode(sample)


def test_only_the_media_differ_from_an_example_without_cache(
    encoder: SampleEncoder, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, captions: ShardSet
) -> None:
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    for number in (0, 2):
        with_features, without = encoder.encode(captions[number]), plain.encode(captions[number])
        assert replace(with_features, media=()) == replace(without, media=())
        assert with_features.media[0].first == without.media[0].first


@pytest.mark.parametrize("packed", [True, False])
def test_cached_and_uncached_media_share_a_micro_batch(
    packed: bool, encoder: SampleEncoder, spec: ModelSpec, captions: ShardSet
) -> None:
    examples = [encoder.encode(captions[number]) for number in (2, 0, 3)]
    batch = pack(examples) if packed else collate(examples, pad_id=0, side="right")
    image = batch.media["image"]
    assert image.input_values.shape == (2, 1, 3, 48, 48)
    assert image.cached_features is not None
    assert image.cached_features.shape == (1, *SHAPE)
    assert image.cached_m is not None
    assert image.cached_m.tolist() == [False, True, False]
    assert image.keys == (key_of(captions[2], spec), key_of(captions[3], spec))
    assert int(image.media_mask_bt.sum()) == 3 * 36
    all_cached = pack([encoder.encode(captions[0])]).media["image"]
    assert len(all_cached.input_values) == 0
    assert all_cached.to("cpu").cached_features is not None


def test_a_reader_can_be_pickled(cache: CacheReader, spec: ModelSpec, captions: ShardSet) -> None:
    copy = pickle.loads(pickle.dumps(cache))
    found = copy.find(captions[0].media[0])
    assert found.features is not None
    assert copy.find(captions[2].media[0]).features is None
    assert CacheReader().find(captions[0].media[0]) is None
