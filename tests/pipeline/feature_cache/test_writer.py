"""What training encodes is kept: whole files, bounded memory, and no run ends for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.feature_cache.cache_key import Producer
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.writer import Recorder

KEYS = [bytes([number]) * 32 for number in range(6)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], FeatureStore]:
    def made(weights: str) -> FeatureStore:
        producer = Producer(role="encoder", spec={}, weights=weights, dtype="float32")
        store = FeatureStore(tmp_path, producer)
        store.create()
        return store

    return made


def parts(store: FeatureStore) -> int:
    return len(list(store.folder.glob("part-*.arrow")))


def test_a_file_is_written_when_there_is_enough_and_at_the_end(
    make: Callable[[str], FeatureStore],
) -> None:
    store, features = make("a"), torch.randn(6, 1, 4, 8)
    with Recorder({"image": store}, part_bytes=4 * features[0].nbytes) as recorder:
        recorder.keep("image", KEYS[:3], features[:3])
        recorder.keep("image", KEYS[:3], features[:3])  # the same once more
        assert parts(store) == 0
        recorder.keep("image", KEYS[3:5], features[3:5])
        recorder.keep("image", KEYS[5:], features[5:])
        recorder.keep("audio", KEYS[:1], features[:1])  # nobody keeps those
    assert parts(store) == 2
    assert recorder.written == 6
    for key, one in zip(KEYS, features, strict=True):
        found = store.get(key)
        assert found is not None
        assert torch.equal(found, one)


def test_each_encoder_has_its_own_files(make: Callable[[str], FeatureStore]) -> None:
    image, audio = make("a"), make("b")
    with Recorder({"image": image, "video": image, "audio": audio}) as recorder:
        for number, kind in enumerate(("image", "video", "audio")):
            recorder.keep(kind, KEYS[number : number + 1], torch.full((1, 1, 1, 2), float(number)))
    assert (parts(image), parts(audio)) == (1, 1)
    assert KEYS[1] in image
    assert KEYS[2] in audio
    assert KEYS[2] not in image


def test_what_cannot_be_written_is_told_and_training_goes_on(
    make: Callable[[str], FeatureStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = make("a")
    with Recorder({"image": store}, part_bytes=1) as recorder:
        (store.folder / "producer.json").unlink()
        store.folder.rmdir()
        store.folder.write_text("in the way")
        recorder.keep("image", KEYS[:1], torch.ones(1, 1, 1, 1))
        recorder.keep("image", KEYS[1:2], torch.ones(1, 1, 1, 1))
        recorder.keep("image", KEYS[2:3], torch.ones(1, 1, 1, 1))
    assert caplog.text.count("features are kept no longer") == 1
    assert recorder.written == 0
