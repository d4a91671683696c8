"""Which row stays, against a plain reading of the rule."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.images import NearImages, duplicate_of
from etl.runtime.worker import STAGED_SCHEMA


def plainly(items: int, pairs: set[tuple[int, int]]) -> list[bool]:
    kept: list[bool] = []
    for late in range(items):
        kept.append(not any(kept[early] and (early, late) in pairs for early in range(late)))
    return kept


@pytest.mark.parametrize("most", [1 << 20, 5])
@pytest.mark.parametrize("seed", range(5))
def test_what_goes_is_like_an_earlier_one_that_stays(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    alike = np.triu(rng.random((60, 60)) < 0.1, 1)
    pairs = set(zip(*(found.tolist() for found in np.nonzero(alike)), strict=True))

    def find(items: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        left, right = np.nonzero(alike[np.ix_(items, items)])
        for part in range(0, len(left), 3):
            yield right[part : part + 3], left[part : part + 3]

    twins = duplicate_of(60, find, maximum=most)
    assert (twins < 0).tolist() == plainly(60, pairs)
    for late, early in enumerate(twins.tolist()):
        assert early < 0 or ((early, late) in pairs and twins[early] < 0)


def table(*rows: tuple[str, list[int | None]]) -> pa.Table:
    found = [
        {"row": 10 * number, "id": str(number), "url": "", "key": key, "phash": hashes}
        for number, (key, hashes) in enumerate(rows)
    ]
    return pa.Table.from_pylist(found, schema=STAGED_SCHEMA)


def dropped(found: pa.Table, distance: int, identity: str) -> dict[int, str | None]:
    result = NearImages(distance=distance, identity=identity)(found)
    told = zip(result.reasons, result.details, strict=True)
    assert all(reason in (None, "near_duplicate_image") for reason in result.reasons)
    return {place: detail for place, (reason, detail) in enumerate(told) if reason}


def test_the_earliest_stays_and_is_named() -> None:
    found = table(("a", [0b1111]), ("b", [1 << 60]), ("c", [0b1100]), ("d", [0b1111]))
    assert dropped(found, 2, "medium") == {2: "2 bits from row 0", 3: "0 bits from row 0"}
    assert dropped(found, 1, "medium") == {3: "0 bits from row 0"}
    assert dropped(found, 0, "medium") == {3: "0 bits from row 0"}


def test_chains_do_not_carry_on() -> None:
    found = table(("a", [0b00]), ("b", [0b11]), ("c", [0b1111]))
    assert set(dropped(found, 2, "medium")) == {1}  # what it was near to is gone


def test_records_must_say_the_same() -> None:
    found = table(("a said", [7]), ("b said", [6]), ("c else", [7]), ("d said", [7]))
    assert set(dropped(found, 1, "record")) == {1, 3}


def test_what_is_no_image_must_be_the_same() -> None:
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


def test_of_several_images_each_must_be_near() -> None:
    found = table(("a b", [1, 2]), ("c d", [1, 60]), ("e f", [3, 0]), ("g", [1]))
    assert set(dropped(found, 1, "medium")) == {2}


def test_a_flood_of_equal_images_is_one_item() -> None:
    flood = table(*[(str(number), [0]) for number in range(3000)], ("x", [1]))
    assert set(dropped(flood, 4, "medium")) == set(range(1, 3001))


def test_as_by_force() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, 400, dtype=np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 3
    pairs = set(zip(*(found.tolist() for found in np.nonzero(np.triu(near, 1))), strict=True))
    kept = plainly(400, pairs)
    found = table(*[(str(place), [value]) for place, value in enumerate(hashes.tolist())])
    assert [place not in dropped(found, 3, "medium") for place in range(1)] == kept[:1]
    gone = dropped(found, 3, "medium")
    assert [place not in gone for place in range(400)] == kept
