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
from pipeline.feature_cache.store import FeatureStore, feature_stores

ENCODER = EncoderId(role="encoder", spec={"kind": "x"}, weights="0" * 64, dtype="float32")

OTHER = EncoderId(role="encoder", spec={"kind": "x"}, weights="1" * 64, dtype="float32")


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(first: int, count: int, dtype: torch.dtype = torch.float32) -> list[FeatureRow]:
    generator = torch.Generator().manual_seed(first)
    return [
        FeatureRow(key=key(first + i), features=torch.randn(1, 3, 4, generator=generator).to(dtype))
        for i in range(count)
    ]


def held(store: FeatureStore, *numbers: int) -> list[bool]:
    """Return which of the keys a store holds, as a process does that opens it now."""
    prefixes = [int.from_bytes(key(number)[:8], "little") for number in numbers]
    answers: list[bool] = reopened(store).contains(np.array(prefixes, np.uint64)).tolist()
    return answers


def reopened(store: FeatureStore) -> FeatureStore:
    copy: FeatureStore = pickle.loads(pickle.dumps(store))
    return copy


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path, ENCODER)
    store.create()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_read_bit_for_bit(store: FeatureStore, dtype: torch.dtype) -> None:
    written = rows(0, 5, dtype)
    write_feature_file(store.folder, written)
    assert held(store, *range(5), 99) == [True] * 5 + [False]
    for row in written:
        found = store.get(row.key)
        assert isinstance(found, torch.Tensor)
        assert isinstance(row.features, torch.Tensor)
        assert found.dtype == dtype
        assert torch.equal(found, row.features)
    with pytest.raises(DamagedFileError, match="no features for key"):
        store.get(key(99))


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
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, embedding)
    assert content_key(hashlib.sha256(b"a").digest(), "text") != content_key(
        hashlib.sha256(b"a").digest(), "image 1"
    )


def test_a_key_may_be_in_two_files(store: FeatureStore) -> None:
    for first, count in ((0, 4), (2, 3), (5, 3), (9, 3)):
        write_feature_file(store.folder, rows(first, count))
    assert held(store, *range(12)) == [number != 8 for number in range(12)]
    other = reopened(store)
    for number in (3, 10):
        assert torch.equal(other.get(key(number)), store.get(key(number)))


def test_an_unreadable_medium_has_a_reason_instead_of_features(store: FeatureStore) -> None:
    bad = [FeatureRow(key=key(7), features="Truncated «File»"), *rows(8, 1)]
    write_feature_file(store.folder, [*rows(0, 2), *bad])
    write_feature_file(store.folder, rows(20, 1))
    assert held(store, 7) == [True]
    assert store.get(key(7)) == "Truncated «File»"
    assert store.unreadable() == {int.from_bytes(key(7)[:8], "little"): "Truncated «File»"}
    assert isinstance(store.get(key(8)), torch.Tensor)


def test_without_rows_nothing_is_written(store: FeatureStore) -> None:
    assert write_feature_file(store.folder, []) is None
    assert [path.name for path in store.folder.iterdir()] == ["encoder.json"]


def test_a_failed_write_leaves_nothing(store: FeatureStore) -> None:
    def failing():
        yield from rows(0, 2)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_feature_file(store.folder, failing())
    assert held(store, 0, 1) == [False, False]
    assert [path.name for path in store.folder.iterdir()] == ["encoder.json"]


def damage(path: Path, offset: int, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for number in range(offset, offset + length):
        data[number] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_row_is_an_error(store: FeatureStore) -> None:
    written = rows(0, 3)
    path = write_feature_file(store.folder, written)
    assert path is not None
    assert isinstance(written[1].features, torch.Tensor)
    middle = path.read_bytes().index(written[1].features.numpy().tobytes())
    damage(path, middle + 5)
    assert isinstance(store.get(key(0)), torch.Tensor)
    with pytest.raises(DamagedFileError) as error:
        store.get(key(1))
    assert str(error.value) == f"{path}: damaged (wrong checksum in row 1)"


def test_a_truncated_file_is_an_error(store: FeatureStore) -> None:
    path = write_feature_file(store.folder, rows(0, 3))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-40])
    write_feature_file(store.folder, rows(3, 3))
    with pytest.raises(DamagedFileError, match="damaged"):
        held(store, 3)


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
            assert isinstance(row.features, torch.Tensor)
            assert torch.equal(found[row.key], row.features)


@pytest.mark.parametrize("read", [True, False])
def test_a_damaged_file_is_quarantined(
    store: FeatureStore, read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without reading all rows, only a file that cannot be opened is found to be damaged."""
    cut, changed, _ = paths = [write_feature_file(store.folder, rows(n, 3)) for n in (0, 3, 6)]
    assert all(paths)
    assert cut is not None
    assert changed is not None
    cut.write_bytes(cut.read_bytes()[:-40])
    features = rows(3, 3)[1].features
    assert isinstance(features, torch.Tensor)
    damage(changed, changed.read_bytes().index(features.numpy().tobytes()))
    damaged = [cut, changed] if read else [cut]
    assert store.quarantine_damaged(read=read) == sorted(path.name for path in damaged)
    assert held(store, 0, 3, 6) == [False, not read, True]
    for path in damaged:
        assert path.with_name(f"{path.name}.damaged").is_file()
        assert f"{path}: damaged" in caplog.text


def test_another_encoder_has_another_folder(tmp_path: Path) -> None:
    assert OTHER.key != ENCODER.key
    store = FeatureStore(tmp_path, ENCODER)
    store.create()
    (store.folder / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="not of this encoder; remove"):
        FeatureStore(tmp_path, ENCODER)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FeatureStore(tmp_path / "file", ENCODER).create()


def test_whole_keys_are_compared(store: FeatureStore) -> None:
    """The index holds only their first 8 bytes."""
    alike = [key(1)[:8] + bytes([number]) * 24 for number in range(3)]
    for number in (0, 1):
        features = torch.full((2,), float(number))
        write_feature_file(store.folder, [FeatureRow(key=alike[number], features=features)])
    for number in (0, 1):
        assert torch.equal(store.get(alike[number]), torch.full((2,), float(number)))
    with pytest.raises(DamagedFileError, match="no features for key"):
        store.get(alike[2])


def test_kinds_that_share_an_encoder_share_the_store(tmp_path: Path) -> None:
    stores = feature_stores(tmp_path, {"image": ENCODER, "video": ENCODER, "audio": OTHER})
    assert stores["image"] is stores["video"]
    assert stores["audio"].folder == tmp_path / OTHER.key
