"""Saving features during training: whole files, bounded memory, and errors do not end the run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.writer import FeatureWriter

KEYS = [bytes([number]) * 32 for number in range(6)]


@pytest.fixture
def create_store(tmp_path: Path) -> Callable[[str], FeatureStore]:
    def create(weights: str) -> FeatureStore:
        encoder_id = EncoderId(role="encoder", spec={}, weights=weights, dtype="float32")
        store = FeatureStore(tmp_path, encoder_id)
        store.create()
        return store

    return create


def count_files(store: FeatureStore) -> int:
    return len(list(store.folder.glob("part-*.arrow")))


def test_a_file_is_written_when_the_buffer_is_full_and_at_the_end(
    create_store: Callable[[str], FeatureStore],
) -> None:
    store, features = create_store("a"), torch.randn(6, 1, 4, 8)
    with FeatureWriter({"image": store}, file_bytes=4 * features[0].nbytes) as writer:
        writer.add("image", KEYS[:3], features[:3])
        writer.add("image", KEYS[:3], features[:3])  # the same again
        assert count_files(store) == 0
        writer.add("image", KEYS[3:5], features[3:5])
        writer.add("image", KEYS[5:], features[5:])
        writer.add("audio", KEYS[:1], features[:1])  # not cached
    assert count_files(store) == 2
    assert writer.written == 6
    for key, expected in zip(KEYS, features, strict=True):
        found = store.get(key)
        assert found is not None
        assert torch.equal(found, expected)


def test_each_encoder_has_its_own_files(create_store: Callable[[str], FeatureStore]) -> None:
    image, audio = create_store("a"), create_store("b")
    with FeatureWriter({"image": image, "video": image, "audio": audio}) as writer:
        for number, kind in enumerate(("image", "video", "audio")):
            writer.add(kind, KEYS[number : number + 1], torch.full((1, 1, 1, 2), float(number)))
    assert (count_files(image), count_files(audio)) == (1, 1)
    assert KEYS[1] in image
    assert KEYS[2] in audio
    assert KEYS[2] not in image


def test_a_failed_write_is_reported_and_training_continues(
    create_store: Callable[[str], FeatureStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = create_store("a")
    with FeatureWriter({"image": store}, file_bytes=1) as writer:
        (store.folder / "encoder.json").unlink()
        store.folder.rmdir()
        store.folder.write_text("in the way")
        writer.add("image", KEYS[:1], torch.ones(1, 1, 1, 1))
        writer.add("image", KEYS[1:2], torch.ones(1, 1, 1, 1))
        writer.add("image", KEYS[2:3], torch.ones(1, 1, 1, 1))
    assert caplog.text.count("features are no longer saved") == 1
    assert writer.written == 0
