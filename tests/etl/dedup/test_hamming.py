"""The index finds what comparing each with each finds, and every pair once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from etl.dedup import hamming
from etl.dedup.hamming import near_pairs

Hashes = NDArray[np.uint64]


def drawn(bits: int, rng: np.random.Generator) -> Hashes:
    """Distinct hashes, in which a few bits are turned in half of them."""
    hashes = rng.integers(0, 1 << bits, 300, dtype=np.uint64)
    turned = hashes.copy()
    for _ in range(4):
        turned ^= np.uint64(1) << rng.integers(0, bits, len(turned), dtype=np.uint64)
    return rng.permutation(np.unique([*hashes, *turned]))


def by_force(hashes: Hashes, distance: int, groups: NDArray[np.int64] | None) -> set:
    differing_bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = differing_bits.reshape(len(hashes), len(hashes), -1).max(axis=-1) <= distance
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
def test_as_by_force(distance: int, bits: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_LARGE", large)  # as if millions shared their bits
    rng = np.random.default_rng((distance, bits))
    hashes = drawn(bits, rng)
    assert by_index(hashes, distance, None) == by_force(hashes, distance, None)
    groups = rng.integers(0, 3, len(hashes))
    assert by_index(hashes, distance, groups) == by_force(hashes, distance, groups)


def test_a_wide_distance() -> None:
    hashes = drawn(63, np.random.default_rng(0))
    assert by_index(hashes, 8, None) == by_force(hashes, 8, None)


def test_items_of_several_hashes_are_near_in_all() -> None:
    rng = np.random.default_rng(0)
    hashes = np.stack([rng.integers(0, 1 << 6, 200, dtype=np.uint64) for _ in range(3)], axis=1)
    hashes = np.unique(hashes, axis=0)
    assert by_index(hashes, 2, None) == by_force(hashes, 2, None)


def test_nothing_and_one_have_no_pairs() -> None:
    for count in (0, 1):
        assert by_index(np.arange(count, dtype=np.uint64), 4, None) == set()
