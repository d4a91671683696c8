"""With a cache, media are read as features: not decoded, and otherwise the same examples."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet, write_folder
from model.spec import ModelSpec
from pipeline.data.collate import collate, pack
from pipeline.data.dataset import BadSample, MultimodalDataset, UnreadableShard
from pipeline.data.encode import SampleEncoder
from pipeline.data.sampler import SampleRef
from pipeline.feature_cache.cache_key import EncoderId, medium_key
from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore

SHAPE = (1, 36, 128)


def broken(sample: Sample) -> Sample:
    """Return a sample with an image that cannot be decoded."""
    data = sample.media[0].data[:200]
    digest = hashlib.sha256(data).hexdigest()
    return replace(sample, media=(replace(sample.media[0], data=data, sha256=digest),))


def key_of(sample: Sample, spec: ModelSpec) -> bytes:
    return medium_key(hashlib.sha256(sample.media[0].data).digest(), spec.input_branch("image"))


@pytest.fixture
def samples(captions: ShardSet) -> list[Sample]:
    return [captions[0], captions[1], broken(captions[2]), captions[3]]


@pytest.fixture
def cache(tmp_path: Path, spec: ModelSpec, samples: list[Sample]) -> CacheReader:
    """The features of all images, except for the third, which is unreadable."""
    encoder_id = EncoderId(role="encoder", spec={}, weights="", dtype="float32")
    store = FeatureStore(tmp_path / "cache", encoder_id)
    store.create()
    rows = [
        FeatureRow(
            key=key_of(sample, spec),
            features="too short" if number == 2 else torch.full(SHAPE, float(number)),
        )
        for number, sample in enumerate(samples)
    ]
    write_feature_file(store.folder, rows)
    return CacheReader(model=spec, stores={"image": store}, command="make features")


@pytest.fixture
def encoder(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, cache: CacheReader
) -> SampleEncoder:
    return SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200, features=cache)


def test_only_the_media_differ_from_an_example_without_cache(
    encoder: SampleEncoder,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    samples: list[Sample],
) -> None:
    plain = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=200)
    for number in (0, 1, 3):
        with_features, without = encoder.encode(samples[number]), plain.encode(samples[number])
        assert replace(with_features, media=()) == replace(without, media=())
        ((given,), (decoded,)) = with_features.media, without.media
        assert (given.kind, given.start, given.first) == (
            decoded.kind,
            decoded.start,
            decoded.first,
        )
        assert given.input_values is None
        assert decoded.features is None
        assert torch.equal(given.features, torch.full(SHAPE, float(number)))


def test_an_unreadable_medium_skips_its_sample_as_without_cache(
    encoder: SampleEncoder, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(SampleError) as error:
        encoder.encode(samples[2])
    reason = f"sample {samples[2].id}: its image cannot be decoded (too short)"
    assert str(error.value) == reason
    shards = ShardSet([write_folder(tmp_path / "data", samples, job="test")])
    item = MultimodalDataset(shards, encoder)[SampleRef(position=5, row=2)]
    assert item == BadSample(position=5, row=2, id=samples[2].id, reason=reason)


def test_a_wrong_digest_in_a_shard_does_not_return_another_medium_s_features(
    encoder: SampleEncoder, samples: list[Sample]
) -> None:
    other = samples[0].media[0]
    medium = replace(samples[1].media[0], sha256=other.sha256)
    with pytest.raises(SampleError, match="sha256 in the shard is not that of its bytes"):
        encoder.encode(replace(samples[1], media=(medium,)))


def test_a_medium_without_digest_is_found_by_its_bytes(
    encoder: SampleEncoder, samples: list[Sample]
) -> None:
    (medium,) = encoder.encode(
        replace(samples[1], media=(replace(samples[1].media[0], sha256=""),))
    ).media
    assert torch.equal(medium.features, torch.ones(SHAPE))


def test_damage_ends_the_run_and_says_what_to_do(
    encoder: SampleEncoder, cache: CacheReader, samples: list[Sample], tmp_path: Path
) -> None:
    (path,) = cache.stores["image"].folder.glob("part-*.arrow")
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(SHAPE).numpy().tobytes())] ^= 0xFF
    path.write_bytes(data)
    message = f"{path}: damaged (wrong checksum in row 1); `make features` makes its features again"
    with pytest.raises(UserError) as error:
        encoder.encode(samples[1])
    assert str(error.value) == message
    shards = ShardSet([write_folder(tmp_path / "data", samples, job="test")])
    item = MultimodalDataset(shards, encoder)[SampleRef(position=0, row=1)]
    assert item == UnreadableShard(message)


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_gives_features_instead_of_input_values(
    packed: bool, encoder: SampleEncoder, samples: list[Sample]
) -> None:
    examples = [encoder.encode(samples[number]) for number in (3, 0, 1)]
    batch = pack(examples) if packed else collate(examples, pad_id=0, side="right")
    image = batch.media["image"].to("cpu")
    assert image.input_values is None
    assert image.features is not None
    assert image.features.shape == (3, *SHAPE)
    assert image.features[:, 0, 0, 0].tolist() == [3.0, 0.0, 1.0]
    assert int(image.media_mask_bt.sum()) == 3 * 36
    assert batch.count("image") == 3


def test_a_reader_can_be_pickled(cache: CacheReader, samples: list[Sample]) -> None:
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.medium(samples[1].media[0]), torch.ones(SHAPE))
    assert set(copy.kinds) == {"image"}
