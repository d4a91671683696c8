"""Near-duplicate images: which row is kept, compared with a direct implementation of the rule."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.images import NearImages, duplicate_of
from etl.runtime.worker import STAGED_SCHEMA


def kept_directly(items: int, pairs: set[tuple[int, int]]) -> list[bool]:
    kept: list[bool] = []
    for late in range(items):
        kept.append(not any(kept[early] and (early, late) in pairs for early in range(late)))
    return kept


@pytest.mark.parametrize("max_pairs", [1 << 20, 5])
@pytest.mark.parametrize("seed", range(5))
def test_dropped_items_duplicate_an_earlier_kept_one(seed: int, max_pairs: int) -> None:
    rng = np.random.default_rng(seed)
    similar = np.triu(rng.random((60, 60)) < 0.1, 1)
    pairs = set(zip(*(found.tolist() for found in np.nonzero(similar)), strict=True))

    def find(items: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        left, right = np.nonzero(similar[np.ix_(items, items)])
        for part in range(0, len(left), 3):
            yield right[part : part + 3], left[part : part + 3]

    originals = duplicate_of(60, find, max_pairs=max_pairs)
    assert (originals < 0).tolist() == kept_directly(60, pairs)
    for late, early in enumerate(originals.tolist()):
        assert early < 0 or ((early, late) in pairs and originals[early] < 0)


def table(*rows: tuple[str, list[int | None]]) -> pa.Table:
    found = [
        {"row": 10 * number, "id": str(number), "url": "", "key": key, "phash": hashes}
        for number, (key, hashes) in enumerate(rows)
    ]
    return pa.Table.from_pylist(found, schema=STAGED_SCHEMA)


def dropped(found: pa.Table, distance: int, identity: str) -> dict[int, str | None]:
    result = NearImages(distance=distance, identity=identity)(found)
    outcome = zip(result.reasons, result.details, strict=True)
    assert all(reason in (None, "near_duplicate_image") for reason in result.reasons)
    return {row: detail for row, (reason, detail) in enumerate(outcome) if reason}


def test_the_earliest_row_is_kept_and_named() -> None:
    found = table(("a", [0b1111]), ("b", [1 << 60]), ("c", [0b1100]), ("d", [0b1111]))
    assert dropped(found, 2, "medium") == {2: "2 bits from row 0", 3: "0 bits from row 0"}
    assert dropped(found, 1, "medium") == {3: "0 bits from row 0"}
    assert dropped(found, 0, "medium") == {3: "0 bits from row 0"}


def test_similarity_is_not_transitive() -> None:
    found = table(("a", [0b00]), ("b", [0b11]), ("c", [0b1111]))
    assert set(dropped(found, 2, "medium")) == {1}  # its only near row was dropped


def test_records_must_have_the_same_text() -> None:
    found = table(("a said", [7]), ("b said", [6]), ("c else", [7]), ("d said", [7]))
    assert set(dropped(found, 1, "record")) == {1, 3}


def test_other_media_must_be_identical() -> None:
    found = table(
        ("v", [None]),
        ("v", [None]),
        ("", []),
        ("a v", [5, None]),
        ("b v", [4, None]),
        ("c w", [5, None]),
        ("d v", [None, 5]),
    )
    for identity in ("medium", "record"):
        assert set(dropped(found, 1, identity)) == {4}


def test_each_of_several_images_must_be_near() -> None:
    found = table(("a b", [1, 2]), ("c d", [1, 60]), ("e f", [3, 0]), ("g", [1]))
    assert set(dropped(found, 1, "medium")) == {2}


def test_many_equal_images_are_one_item() -> None:
    flood = table(*[(str(number), [0]) for number in range(3000)], ("x", [1]))
    assert set(dropped(flood, 4, "medium")) == set(range(1, 3001))


def test_duplicates_agree_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, 400, dtype=np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 3
    pairs = set(zip(*(found.tolist() for found in np.nonzero(np.triu(near, 1))), strict=True))
    kept = kept_directly(400, pairs)
    found = table(*[(str(row), [value]) for row, value in enumerate(hashes.tolist())])
    duplicates = dropped(found, 3, "medium")
    assert [row not in duplicates for row in range(400)] == kept
