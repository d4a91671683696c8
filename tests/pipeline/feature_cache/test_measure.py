"""The measurement: what it looks at, and what it leaves behind. How fast is not for a test."""

from pathlib import Path

import pytest

from etl.storage.shards import ShardSet
from model.build import build
from model.presets import system
from pipeline.feature_cache.cache_key import encoder_producer
from pipeline.feature_cache.cached import KeptMedia
from pipeline.feature_cache.measure import Timing, measure
from pipeline.feature_cache.store import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    preset = system("digits")
    model = build(preset.model, preset.pt, weights="random")
    slot = preset.model.input_branch("image")
    made = FeatureStore(tmp_path, encoder_producer(slot, model.encoder("image")))
    made.create()
    return made


def test_both_ways_are_timed_and_nothing_is_left(store: FeatureStore, captions: ShardSet) -> None:
    preset = system("digits")
    encoder = build(preset.model, preset.pt, weights="random").train().encoder("image")
    slot = preset.model.input_branch("image")
    kept = KeptMedia(slot=slot, module=encoder)
    timing = measure(captions, kept, (), store, "cpu")
    assert timing is not None
    assert (timing.media, timing.bytes) == (8, 36 * 128 * 4)
    assert min(timing.decode, timing.encode, timing.read) > 0
    assert len(store) == 0
    assert [path.name for path in store.folder.iterdir()] == ["producer.json"]


def test_data_without_such_media_cannot_be_timed(store: FeatureStore, captions: ShardSet) -> None:
    preset = system("digits_audio")
    slot = preset.model.input_branch("audio")
    encoder = build(preset.model, preset.pt, weights="random").encoder("audio")
    kept = KeptMedia(slot=slot, module=encoder)
    assert measure(captions, kept, (), store, "cpu") is None


@pytest.mark.parametrize(("read", "faster"), [(0.2, True), (0.4, False)])
def test_reading_must_beat_decoding_and_encoding(read: float, faster: bool) -> None:
    timing = Timing(media=1, decode=0.1, encode=0.2, read=read, bytes=1)
    assert timing.faster is faster
