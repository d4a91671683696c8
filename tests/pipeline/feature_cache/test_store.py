"""Features on disk: what was written is what is read, and what is damaged is noticed."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from etl.cli import UserError
from pipeline.data.encode import Example
from pipeline.feature_cache.cache_key import Producer, content_key
from pipeline.feature_cache.feature_file import DamagedError, Part, write_part
from pipeline.feature_cache.index import Index
from pipeline.feature_cache.store import FeatureStore

PRODUCER = Producer(role="encoder", spec={"kind": "x"}, weights="0" * 64, dtype="float32")


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(first: int, count: int, dtype: torch.dtype = torch.float32) -> list[Example]:
    draw = torch.Generator().manual_seed(first)
    return [
        Example(key=key(first + i), features=torch.randn(1, 3, 4, generator=draw).to(dtype))
        for i in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore(tmp_path, PRODUCER)
    made.create()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_come_back_bit_for_bit(store: FeatureStore, dtype: torch.dtype) -> None:
    written = rows(0, 5, dtype)
    write_part(store.folder, written)
    assert len(store) == 5
    for row in written:
        found = store.get(row.key)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, row.features)
    assert store.get(key(99)) is None


def test_text_embeddings_of_any_length_fit_in(store: FeatureStore) -> None:
    """A generator's frozen text encoder is a producer as another, a text content as another."""
    texts = ["a red 3", "a green 7 at the top left"]
    keys = [content_key(hashlib.sha256(text.encode()).digest(), "text") for text in texts]
    embeddings = [torch.randn(len(text.split()), 8, dtype=torch.bfloat16) for text in texts]
    write_part(
        store.folder, (Example(key=k, features=e) for k, e in zip(keys, embeddings, strict=True))
    )
    for one, embedding in zip(keys, embeddings, strict=True):
        found = store.get(one)
        assert found is not None
        assert torch.equal(found, embedding)
    assert content_key(hashlib.sha256(b"a").digest(), "text") != content_key(
        hashlib.sha256(b"a").digest(), "image 1"
    )


def test_files_that_others_add_are_seen_and_a_key_may_stand_in_two(store: FeatureStore) -> None:
    write_part(store.folder, rows(0, 4))
    assert key(5) not in store
    for first in (2, 5, 9):
        write_part(store.folder, rows(first, 3))
    for number in (*range(8), 9, 10, 11):
        assert key(number) in store
    assert key(8) not in store
    other = pickle.loads(pickle.dumps(store))
    assert torch.equal(other.get(key(10)), store.get(key(10)))


def test_nothing_to_write_leaves_nothing(store: FeatureStore) -> None:
    assert write_part(store.folder, []) is None
    assert [path.name for path in store.folder.iterdir()] == ["producer.json"]


def test_a_writer_that_fails_leaves_nothing(store: FeatureStore) -> None:
    def failing():
        yield from rows(0, 2)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_part(store.folder, failing())
    assert len(store) == 0
    assert [path.name for path in store.folder.iterdir()] == ["producer.json"]


def damage(path: Path, place: int, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for number in range(place, place + length):
        data[number] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_row_is_told_once_and_its_file_read_no_more(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    written = rows(0, 3)
    path = write_part(store.folder, written)
    assert path is not None
    middle = path.read_bytes().index(written[1].features.numpy().tobytes())
    damage(path, middle + 5)
    assert store.get(key(0)) is not None
    assert store.get(key(1)) is None
    assert store.get(key(0)) is None
    (message,) = caplog.messages
    assert message == (
        f"{path}: damaged (row 1 is not what was written); its features are made anew"
    )
    write_part(store.folder, written)
    found = store.get(key(1))
    assert found is not None
    assert torch.equal(found, written[1].features)


def test_a_cut_file_is_ignored(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    path = write_part(store.folder, rows(0, 3))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-40])
    write_part(store.folder, rows(3, 3))
    assert len(store) == 3
    assert "damaged" in caplog.text


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_goes_unnoticed(tmp_path: Path, seed: int) -> None:
    """Whatever is overwritten: a row is what was written, or an error, or not found."""
    written = rows(0, 6)
    path = write_part(tmp_path, written)
    assert path is not None
    draw = np.random.default_rng(seed)
    size = path.stat().st_size
    damage(path, int(draw.integers(0, size - 16)), int(draw.integers(1, 16)))
    try:
        part = Part(path)
        found = {part.key(row): part.read(row) for row in range(len(part))}
    except DamagedError:
        return
    for row in written:
        if row.key in found:
            assert torch.equal(found[row.key], row.features)


def test_what_is_damaged_is_set_aside_to_be_made_anew(store: FeatureStore) -> None:
    path = write_part(store.folder, rows(0, 3))
    sound = write_part(store.folder, rows(3, 3))
    assert path is not None
    assert sound is not None
    damage(path, path.stat().st_size // 2, 8)
    assert len(store) == 6
    assert store.set_aside_damaged() == [path.name]
    assert len(store) == 3
    assert path.with_name(f"{path.name}.damaged").is_file()


def test_another_producer_has_another_folder(tmp_path: Path) -> None:
    other = Producer(role="encoder", spec={"kind": "x"}, weights="1" * 64, dtype="float32")
    assert other.key != PRODUCER.key
    mine = FeatureStore(tmp_path, PRODUCER)
    mine.create()
    (mine.folder / "producer.json").write_text("{}")
    with pytest.raises(UserError, match="not of this producer; remove"):
        FeatureStore(tmp_path, PRODUCER)


def test_a_folder_that_is_a_file_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FeatureStore(tmp_path / "file", PRODUCER).create()


def test_an_index_takes_16_bytes_a_key_and_finds_all_that_begin_alike() -> None:
    index = Index()
    draw = np.random.default_rng(0)
    heads = draw.integers(0, 2**63, 1000, dtype=np.uint64)
    heads[500] = heads[3]
    for part, first in enumerate(range(0, 1000, 10)):
        index.add(part, heads[first : first + 10])
    assert index.nbytes == 16 * 1000
    assert set(index.places(heads[3].tobytes() + b"rest")) == {(0, 3), (50, 0)}
    for number in (0, 17, 999):
        assert list(index.places(heads[number].tobytes())) == [(number // 10, number % 10)]
    assert not list(index.places(b"nothing!"))
