"""Near duplicates of images over a whole job: the earliest row stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl.dedup.hamming import Indices, Pairs, apart, near_pairs
from etl.filters.base import Verdict

Find = Callable[[Indices], Iterable[Pairs]]
"""From items to those pairs among them that are alike: places in what was given, each pair once."""

_MOST_EDGES = 1 << 24  # pairs that are held at a time, of 16 bytes
_AT_A_TIME = 1 << 16  # of which as Python's numbers


def earlier_twins(items: int, find: Find, *, most: int = _MOST_EDGES) -> Indices:
    """Of each item the kept earlier one that it is like, or -1 if it is kept itself.

    An item goes if it is like an earlier one that stays. So no two that stay are alike, and
    whatever goes is like one that stays; a chain of likenesses does not carry further.

    Args:
        items: how many there are; their numbers are their order.
        find: what is alike.
        most: pairs held in memory; where there are more, the earlier half is settled first.
    """
    twins = np.full(items, -1, np.int64)
    _settle(np.arange(items), find, twins, most)
    return twins


def _settle(items: Indices, find: Find, twins: Indices, most: int) -> None:
    parts, count = [], 0
    for left, right in find(items):
        parts.append(np.stack([np.minimum(left, right), np.maximum(left, right)]))
        count += len(left)
        if count > most and len(items) > 2:
            break
    else:
        if parts:
            _settle_pairs(items[np.concatenate(parts, axis=1)], twins)
        return
    del parts
    early, late = items[: len(items) // 2], items[len(items) // 2 :]
    _settle(early, find, twins, most)
    kept = early[twins[early] < 0]
    for left, right in find(np.concatenate([kept, late])):
        first, second = np.minimum(left, right), np.maximum(left, right)
        across = (first < len(kept)) & (second >= len(kept))
        twins[late[second[across] - len(kept)]] = kept[first[across]]
    _settle(late[twins[late] < 0], find, twins, most)


def _settle_pairs(pairs: NDArray[np.int64], twins: Indices) -> None:
    first, second = pairs[:, np.lexsort(pairs)]
    for start in range(0, len(first), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        for early, late in zip(first[part].tolist(), second[part].tolist(), strict=True):
            if twins[early] < 0 and twins[late] < 0:
                twins[late] = early


@dataclass(frozen=True, kw_only=True)
class NearImages:
    """Drops records whose images are near those of an earlier record (`near_duplicate_image`).

    Needs `row`, `key` and `phash` (see `etl.runtime.worker.KEPT`) of the whole job in the input's
    order. Records without an image are kept. Of several images each must be near the one in its
    place; media that are no images must be the same, and so must the text if `identity` is
    `record`.

    Args:
        distance: the most bits of 64 in which perceptual hashes of near images differ.
        identity: `medium` if images alone decide, `record` if the text must be the same, too.
    """

    distance: int
    identity: Literal["medium", "record"]

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge the whole job's rows."""
        reasons: list[str | None] = [None] * table.num_rows
        details: list[str | None] = [None] * table.num_rows
        lists = table["phash"].combine_chunks()
        numbers = table["row"].to_numpy()
        groups = self._groups(table)
        sizes = np.diff(lists.offsets.to_numpy())
        for size in np.unique(sizes[sizes > 0]).tolist():
            rows, hashes = _hashes(lists, np.flatnonzero(sizes == size), size)
            for late, early, bits in self._near(hashes, None if groups is None else groups[rows]):
                reasons[rows[late]] = "near_duplicate_image"
                details[rows[late]] = f"{bits} bits from row {numbers[rows[early]]}"
        return Verdict(reasons=reasons, details=details)

    def _groups(self, table: pa.Table) -> NDArray[np.int64] | None:
        """A number for what must be the same besides the images; None if nothing must."""
        if self.identity == "medium" and not _others(table["phash"]):
            return None
        rest = [
            _rest(key, hashes)
            for key, hashes in zip(
                table["key"].to_pylist(), table["phash"].to_pylist(), strict=True
            )
        ]
        return pa.array(rest).dictionary_encode().indices.to_numpy().astype(np.int64)

    def _near(
        self, hashes: NDArray[np.uint64], groups: NDArray[np.int64] | None
    ) -> Iterable[tuple[int, int, int]]:
        """Places of the dropped, of the kept that each is near, and their greatest distance."""
        told = hashes if groups is None else np.column_stack([groups.astype(np.uint64), hashes])
        # Equal ones (constant images, say) are one item, so that no bucket grows with them.
        found = np.unique(
            told[:, 0] if told.shape[1] == 1 else told,
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        order = np.argsort(found[1])  # by where each appears first
        firsts = found[1][order]
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        item = places[found[2].reshape(-1)]

        def find(items: Indices) -> Iterable[Pairs]:
            some = firsts[items]
            return near_pairs(hashes[some], self.distance, None if groups is None else groups[some])

        twins = earlier_twins(len(firsts), find)
        keepers = firsts[np.where(twins < 0, np.arange(len(twins)), twins)][item]
        dropped = np.flatnonzero(keepers != np.arange(len(item)))
        bits = np.zeros(len(dropped), np.int64)
        for column in hashes.T:
            bits = np.maximum(bits, apart(column, dropped, keepers[dropped]))
        return zip(dropped.tolist(), keepers[dropped].tolist(), bits.tolist(), strict=True)


def _hashes(
    lists: pa.ListArray, rows: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Hashes (n, k) of the images of those rows that have any; a medium that is none has 0."""
    values = lists.take(pa.array(rows)).values
    known = values.is_valid().to_numpy(zero_copy_only=False).reshape(-1, size)
    table = values.fill_null(0).to_numpy().reshape(-1, size)
    return rows[known.any(axis=1)], table[known.any(axis=1)]


def _others(lists: pa.ChunkedArray) -> bool:
    return any(chunk.values.null_count for chunk in lists.chunks)


def _rest(key: str, hashes: list[int | None]) -> str:
    """A record's identity without its images."""
    parts = key.split(" ")
    media = ["" if phash is not None else part for part, phash in zip(parts, hashes, strict=False)]
    return " ".join([*media, *parts[len(hashes) :]])
