"""The measurement: what it covers, and that it leaves nothing behind; speed is not asserted."""

from pathlib import Path

import pytest

from etl.storage.shards import ShardSet
from model.build import build
from model.presets import system
from pipeline.feature_cache.cache_key import media_encoder_id
from pipeline.feature_cache.cached_encoder import CachedMediaEncoder
from pipeline.feature_cache.measure import Timing, measure
from pipeline.feature_cache.store import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    preset = system("digits")
    model = build(preset.model, preset.pt, weights="random")
    branch = preset.model.input_branch("image")
    store = FeatureStore(tmp_path, media_encoder_id(branch, model.encoder("image")))
    store.create()
    return store


def test_reading_and_encoding_are_timed_and_nothing_is_left_behind(
    store: FeatureStore, captions: ShardSet
) -> None:
    preset = system("digits")
    module = build(preset.model, preset.pt, weights="random").train().encoder("image")
    encoder = CachedMediaEncoder(branch=preset.model.input_branch("image"), module=module)
    timing = measure(captions, encoder, (), store, "cpu")
    assert timing is not None
    assert (timing.media, timing.bytes) == (8, 36 * 128 * 4)
    assert min(timing.decode, timing.encode, timing.read) > 0
    assert len(store) == 0
    assert [path.name for path in store.folder.iterdir()] == ["encoder.json"]


def test_data_without_such_media_cannot_be_measured(
    store: FeatureStore, captions: ShardSet
) -> None:
    preset = system("digits_audio")
    module = build(preset.model, preset.pt, weights="random").encoder("audio")
    encoder = CachedMediaEncoder(branch=preset.model.input_branch("audio"), module=module)
    assert measure(captions, encoder, (), store, "cpu") is None


@pytest.mark.parametrize(("read", "faster"), [(0.2, True), (0.4, False)])
def test_reading_must_beat_decoding_and_encoding(read: float, faster: bool) -> None:
    timing = Timing(media=1, decode=0.1, encode=0.2, read=read, bytes=1)
    assert timing.reading_is_faster is faster
