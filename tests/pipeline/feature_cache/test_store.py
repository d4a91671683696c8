"""Features on disk: read as they were written, and damage is detected."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from etl.cli import UserError
from pipeline.feature_cache.cache_key import EncoderId, content_key
from pipeline.feature_cache.feature_file import (
    DamagedFileError,
    FeatureFile,
    FeatureRow,
    write_feature_file,
)
from pipeline.feature_cache.index import Index
from pipeline.feature_cache.store import FeatureStore

ENCODER = EncoderId(role="encoder", spec={"kind": "x"}, weights="0" * 64, dtype="float32")


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(first: int, count: int, dtype: torch.dtype = torch.float32) -> list[FeatureRow]:
    generator = torch.Generator().manual_seed(first)
    return [
        FeatureRow(key=key(first + i), features=torch.randn(1, 3, 4, generator=generator).to(dtype))
        for i in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path, ENCODER)
    store.create()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_read_bit_for_bit(store: FeatureStore, dtype: torch.dtype) -> None:
    written = rows(0, 5, dtype)
    write_feature_file(store.folder, written)
    assert len(store) == 5
    for row in written:
        found = store.get(row.key)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, row.features)
    assert store.get(key(99)) is None


def test_text_embeddings_of_any_length_can_be_stored(store: FeatureStore) -> None:
    """A generator's frozen text encoder is an encoder like any other."""
    texts = ["a red 3", "a green 7 at the top left"]
    keys = [content_key(hashlib.sha256(text.encode()).digest(), "text") for text in texts]
    embeddings = [torch.randn(len(text.split()), 8, dtype=torch.bfloat16) for text in texts]
    write_feature_file(
        store.folder, (FeatureRow(key=k, features=e) for k, e in zip(keys, embeddings, strict=True))
    )
    for text_key, embedding in zip(keys, embeddings, strict=True):
        found = store.get(text_key)
        assert found is not None
        assert torch.equal(found, embedding)
    assert content_key(hashlib.sha256(b"a").digest(), "text") != content_key(
        hashlib.sha256(b"a").digest(), "image 1"
    )


def test_files_added_by_others_are_found_and_a_key_may_be_in_two(store: FeatureStore) -> None:
    write_feature_file(store.folder, rows(0, 4))
    assert key(5) not in store
    for first in (2, 5, 9):
        write_feature_file(store.folder, rows(first, 3))
    for number in (*range(8), 9, 10, 11):
        assert key(number) in store
    assert key(8) not in store
    other = pickle.loads(pickle.dumps(store))
    assert torch.equal(other.get(key(10)), store.get(key(10)))


def test_without_rows_nothing_is_written(store: FeatureStore) -> None:
    assert write_feature_file(store.folder, []) is None
    assert [path.name for path in store.folder.iterdir()] == ["encoder.json"]


def test_a_failed_write_leaves_nothing(store: FeatureStore) -> None:
    def failing():
        yield from rows(0, 2)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_feature_file(store.folder, failing())
    assert len(store) == 0
    assert [path.name for path in store.folder.iterdir()] == ["encoder.json"]


def damage(path: Path, offset: int, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for number in range(offset, offset + length):
        data[number] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_row_is_reported_once_and_its_file_not_read_again(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    written = rows(0, 3)
    path = write_feature_file(store.folder, written)
    assert path is not None
    middle = path.read_bytes().index(written[1].features.numpy().tobytes())
    damage(path, middle + 5)
    assert store.get(key(0)) is not None
    assert store.get(key(1)) is None
    assert store.get(key(0)) is None
    (message,) = caplog.messages
    assert message == (
        f"{path}: damaged (wrong checksum in row 1); its features are computed again"
    )
    write_feature_file(store.folder, written)
    found = store.get(key(1))
    assert found is not None
    assert torch.equal(found, written[1].features)


def test_a_truncated_file_is_ignored(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    path = write_feature_file(store.folder, rows(0, 3))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-40])
    write_feature_file(store.folder, rows(3, 3))
    assert len(store) == 3
    assert "damaged" in caplog.text


@pytest.mark.parametrize("seed", range(40))
def test_all_damage_is_detected(tmp_path: Path, seed: int) -> None:
    """Whichever bytes are overwritten, a row is read as written, is an error, or is not found."""
    written = rows(0, 6)
    path = write_feature_file(tmp_path, written)
    assert path is not None
    rng = np.random.default_rng(seed)
    size = path.stat().st_size
    damage(path, int(rng.integers(0, size - 16)), int(rng.integers(1, 16)))
    try:
        file = FeatureFile(path)
        found = {file.key(row): file.read(row) for row in range(len(file))}
    except DamagedFileError:
        return
    for row in written:
        if row.key in found:
            assert torch.equal(found[row.key], row.features)


def test_a_damaged_file_is_quarantined(store: FeatureStore) -> None:
    path = write_feature_file(store.folder, rows(0, 3))
    valid = write_feature_file(store.folder, rows(3, 3))
    assert path is not None
    assert valid is not None
    damage(path, path.stat().st_size // 2, 8)
    assert len(store) == 6
    assert store.quarantine_damaged() == [path.name]
    assert len(store) == 3
    assert path.with_name(f"{path.name}.damaged").is_file()


def test_another_encoder_has_another_folder(tmp_path: Path) -> None:
    other = EncoderId(role="encoder", spec={"kind": "x"}, weights="1" * 64, dtype="float32")
    assert other.key != ENCODER.key
    store = FeatureStore(tmp_path, ENCODER)
    store.create()
    (store.folder / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="not of this encoder; remove"):
        FeatureStore(tmp_path, ENCODER)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FeatureStore(tmp_path / "file", ENCODER).create()


def test_an_index_takes_16_bytes_per_key_and_finds_all_with_the_same_prefix() -> None:
    index = Index()
    rng = np.random.default_rng(0)
    prefixes = rng.integers(0, 2**63, 1000, dtype=np.uint64)
    prefixes[500] = prefixes[3]
    for file, first in enumerate(range(0, 1000, 10)):
        index.add(file, prefixes[first : first + 10])
    assert index.nbytes == 16 * 1000
    assert set(index.find(prefixes[3].tobytes() + b"rest")) == {(0, 3), (50, 0)}
    for number in (0, 17, 999):
        assert list(index.find(prefixes[number].tobytes())) == [(number // 10, number % 10)]
    assert not list(index.find(b"nothing!"))
