"""The index finds the same pairs as brute force, and each of them once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from etl.dedup import hamming
from etl.dedup.hamming import near_pairs

Hashes = NDArray[np.uint64]


def random_hashes(bits: int, rng: np.random.Generator) -> Hashes:
    """Distinct hashes; half of them are copies with a few bits flipped."""
    hashes = rng.integers(0, 1 << bits, 300, dtype=np.uint64)
    flipped = hashes.copy()
    for _ in range(4):
        flipped ^= np.uint64(1) << rng.integers(0, bits, len(flipped), dtype=np.uint64)
    return rng.permutation(np.unique([*hashes, *flipped]))


def brute_force(hashes: Hashes, distance: int, groups: NDArray[np.int64] | None) -> set:
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = differing.reshape(len(hashes), len(hashes), -1).max(axis=-1) <= distance
    if groups is not None:
        near &= groups[:, None] == groups[None, :]
    return set(zip(*(found.tolist() for found in np.nonzero(np.triu(near, 1))), strict=True))


def by_index(hashes: Hashes, distance: int, groups: NDArray[np.int64] | None) -> set:
    parts = list(near_pairs(hashes, distance, groups))
    pairs = [pair for part in parts for pair in np.sort(np.stack(part, axis=1), axis=1).tolist()]
    found = {(left, right) for left, right in pairs}
    assert len(found) == len(pairs)
    return found


@pytest.mark.parametrize("large", [4096, 64])
@pytest.mark.parametrize("bits", [63, 12, 8])
@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4])
def test_pairs_agree_with_brute_force(
    distance: int, bits: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "_LARGE_BUCKET", large)  # as if millions shared their bits
    rng = np.random.default_rng((distance, bits))
    hashes = random_hashes(bits, rng)
    assert by_index(hashes, distance, None) == brute_force(hashes, distance, None)
    groups = rng.integers(0, 3, len(hashes))
    assert by_index(hashes, distance, groups) == brute_force(hashes, distance, groups)


def test_a_large_distance() -> None:
    hashes = random_hashes(63, np.random.default_rng(0))
    assert by_index(hashes, 8, None) == brute_force(hashes, 8, None)


def test_items_of_several_hashes_must_be_near_in_all_of_them() -> None:
    rng = np.random.default_rng(0)
    hashes = np.stack([rng.integers(0, 1 << 6, 200, dtype=np.uint64) for _ in range(3)], axis=1)
    hashes = np.unique(hashes, axis=0)
    assert by_index(hashes, 2, None) == brute_force(hashes, 2, None)


def test_zero_or_one_items_have_no_pairs() -> None:
    for count in (0, 1):
        assert by_index(np.arange(count, dtype=np.uint64), 4, None) == set()
