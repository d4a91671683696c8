"""Pairs of 64-bit hashes within a Hamming distance: exact, without comparing all pairs.

The tables of Manku, Jain and Das Sarma (*Detecting Near-Duplicates for Web Crawling*, WWW 2007):
the bits are split into more blocks than may differ, so two hashes within `distance` agree in all
blocks but `distance` of them. For each choice of blocks that may agree, the hashes are sorted by
these blocks, and only neighbours that agree in them are compared. One table is in memory at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]

BITS = 64
MAX_DISTANCE = 10
"""Larger distances need too many tables, and match similar images that are not copies."""
_SORT_COST = 25.0  # cost of sorting and gathering an entry, in comparisons of one pair
_MAX_BLOCKS = 9
_LARGE_BUCKET = 4096  # entries of a bucket that is searched recursively
_CHUNK = 1 << 22  # pairs that are compared at a time


def near_pairs(hashes: Hashes, distance: int, groups: NDArray[np.int64] | None) -> Iterator[Pairs]:
    """Yield every pair within a distance exactly once, in any order, as arrays (left, right).

    Needs about 50 bytes per hash, and time for n log n entries and the pairs found.

    Args:
        hashes: distinct hashes (n,), or (n, k) for items of k hashes each that must all be near.
        distance: the maximum number of differing bits.
        groups: the group of each item (n,); only items of the same group are compared.
    """
    if hashes.ndim == 1:
        hashes = hashes[:, None]
    items = np.arange(len(hashes), dtype=np.int64)
    mixed = None if groups is None else mix(groups.astype(np.uint64))
    all_bits = (1 << BITS) - 1
    columns = range(hashes.shape[1])
    best = max(columns, key=lambda column: len(np.unique(hashes[:, column])))
    for left, right in _search(hashes[:, best], mixed, items, distance, all_bits):
        near = np.ones(len(left), bool)
        for column in columns:
            if column != best:
                near &= differing_bits(hashes[:, column], left, right) <= distance
        if groups is not None:
            near &= groups[left] == groups[right]
        if near.any():
            yield left[near], right[near]


def _search(
    hashes: Hashes, mixed: Hashes | None, items: Indices, distance: int, free: int
) -> Iterator[Pairs]:
    """Yield the pairs among `items` that are near by their first hash.

    `free` is a mask of the bits in which they may differ. With groups (`mixed`), pairs of two
    different groups may be among the results.
    """
    bits = [bit for bit in range(BITS) if free >> bit & 1]
    count = _blocks(len(items), len(bits), distance)
    # Interleaved bits: neighbouring bits of a perceptual hash are correlated.
    blocks = [sum(1 << bit for bit in bits[number::count]) for number in range(count)]
    for chosen in itertools.combinations(range(count), max(0, count - distance)):
        mask = sum(blocks[number] for number in chosen)
        # A pair may agree in several choices; it is yielded in the first of them only.
        skipped = [blocks[n] for n in range(max(chosen, default=0)) if n not in chosen]
        keys = hashes[items] & np.uint64(mask)
        if mixed is not None:
            keys ^= mixed[items]
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], items[order]
        for left, right in _buckets(hashes, mixed, keys, ordered, distance, free & ~mask):
            differing = hashes[left] ^ hashes[right]
            near = np.bitwise_count(differing) <= distance
            for block in skipped:
                near &= (differing & np.uint64(block)) != 0
            if near.any():
                yield left[near], right[near]


def _buckets(
    hashes: Hashes, mixed: Hashes | None, keys: Hashes, items: Indices, distance: int, free: int
) -> Iterator[Pairs]:
    """Yield the pairs of entries of a sorted table whose keys are equal."""
    same = np.concatenate([[False], keys[1:] == keys[:-1], [False]])
    edges = np.flatnonzero(same[1:] != same[:-1])  # start and end of each run of equal keys
    starts, sizes = edges[::2], edges[1::2] - edges[::2] + 1
    # If no more bits may differ than `distance`, all pairs of the bucket are near.
    large = (sizes > _LARGE_BUCKET) & (free.bit_count() > distance)
    left = ranges(starts[~large], sizes[~large] - 1)
    ends = np.repeat((starts + sizes)[~large], sizes[~large] - 1)
    step = 1
    while len(left):
        for part in range(0, len(left), _CHUNK):
            here = left[part : part + _CHUNK]
            yield items[here], items[here + step]
        step += 1
        inside = left + step < ends
        left, ends = left[inside], ends[inside]
    for start, size in zip(starts[large], sizes[large], strict=True):
        # Hashes that share these bits differ in others, since they are distinct.
        yield from _search(hashes, mixed, items[start : start + size], distance, free)


def ranges(starts: Indices, sizes: Indices) -> Indices:
    """The numbers of each range (start, size), concatenated."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - sizes), sizes)


def _blocks(items: int, bits: int, distance: int) -> int:
    """The cheapest number of blocks: more blocks mean more tables, and fewer pairs in each."""

    def cost(count: int) -> float:
        key = bits * (count - distance) // count
        # Hashes are not uniform: as if a quarter of a key's bits carried no information.
        pairs = items / 2.0 ** (0.75 * key + 1)
        return math.comb(count, distance) * (_SORT_COST + pairs)

    most = max(distance + 1, min(bits, distance + _MAX_BLOCKS))
    return min(range(distance + 1, most + 1), key=cost)


def differing_bits(hashes: Hashes, left: Indices, right: Indices) -> NDArray[np.uint8]:
    """The number of differing bits in each pair."""
    return np.bitwise_count(hashes[left] ^ hashes[right])


def mix(values: Hashes) -> Hashes:
    """Scatter group numbers over 64 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
