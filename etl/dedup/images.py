"""Near-duplicate images over a whole job: the earliest row is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl.dedup.hamming import Indices, Pairs, differing_bits, near_pairs
from etl.filters.base import FilterResult

FindPairs = Callable[[Indices], Iterable[Pairs]]
"""Takes items and yields the similar pairs among them, each once, as indices into its argument."""

_MAX_PAIRS = 1 << 24  # held in memory at a time, 16 bytes each
_CHUNK = 1 << 16  # pairs converted to Python integers at a time


def duplicate_of(items: int, find: FindPairs, *, max_pairs: int = _MAX_PAIRS) -> Indices:
    """For each item the earlier kept item that it duplicates, or -1 if it is kept itself.

    An item is dropped if it is similar to an earlier one that is kept. So no two kept items are
    similar, and every dropped item is similar to a kept one; similarity is not transitive.

    Args:
        items: the number of items; their numbers are their order.
        find: finds similar pairs.
        max_pairs: pairs held in memory; if there are more, the earlier half is resolved first.
    """
    originals = np.full(items, -1, np.int64)
    _resolve(np.arange(items), find, originals, max_pairs)
    return originals


def _resolve(items: Indices, find: FindPairs, originals: Indices, max_pairs: int) -> None:
    parts, count = [], 0
    for left, right in find(items):
        parts.append(np.stack([np.minimum(left, right), np.maximum(left, right)]))
        count += len(left)
        if count > max_pairs and len(items) > 2:
            break
    else:
        if parts:
            _resolve_pairs(items[np.concatenate(parts, axis=1)], originals)
        return
    del parts
    early, late = items[: len(items) // 2], items[len(items) // 2 :]
    _resolve(early, find, originals, max_pairs)
    kept = early[originals[early] < 0]
    for left, right in find(np.concatenate([kept, late])):
        first, second = np.minimum(left, right), np.maximum(left, right)
        across = (first < len(kept)) & (second >= len(kept))
        originals[late[second[across] - len(kept)]] = kept[first[across]]
    _resolve(late[originals[late] < 0], find, originals, max_pairs)


def _resolve_pairs(pairs: NDArray[np.int64], originals: Indices) -> None:
    first, second = pairs[:, np.lexsort(pairs)]
    for start in range(0, len(first), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        for early, late in zip(first[chunk].tolist(), second[chunk].tolist(), strict=True):
            if originals[early] < 0 and originals[late] < 0:
                originals[late] = early


@dataclass(frozen=True, kw_only=True)
class NearImages:
    """Drops records whose images are near those of an earlier record (`near_duplicate_image`).

    Needs `row`, `key` and `phash` (`etl.runtime.worker.STAGED_SCHEMA`) of the whole job in input
    order. Records without images are kept. If there are several images, each must be near the one
    at the same position; other media must be identical, and so must the text if `identity` is
    `record`.

    Args:
        distance: the maximum Hamming distance of the 64-bit perceptual hashes.
        identity: `medium` if images alone decide, `record` if the text must be the same, too.
    """

    distance: int
    identity: Literal["medium", "record"]

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter the whole job's rows."""
        reasons: list[str | None] = [None] * table.num_rows
        details: list[str | None] = [None] * table.num_rows
        lists = table["phash"].combine_chunks()
        numbers = table["row"].to_numpy()
        groups = self._groups(table)
        sizes = np.diff(lists.offsets.to_numpy())
        for size in np.unique(sizes[sizes > 0]).tolist():
            rows, hashes = _hashes(lists, np.flatnonzero(sizes == size), size)
            row_groups = None if groups is None else groups[rows]
            for dropped, kept, bits in self._duplicates(hashes, row_groups):
                reasons[rows[dropped]] = "near_duplicate_image"
                details[rows[dropped]] = f"{bits} bits from row {numbers[rows[kept]]}"
        return FilterResult(reasons=reasons, details=details)

    def _groups(self, table: pa.Table) -> NDArray[np.int64] | None:
        """A number for everything else that must be the same; None if nothing must."""
        if self.identity == "medium" and not _has_other_media(table["phash"]):
            return None
        rest = [
            _rest(key, hashes)
            for key, hashes in zip(
                table["key"].to_pylist(), table["phash"].to_pylist(), strict=True
            )
        ]
        return pa.array(rest).dictionary_encode().indices.to_numpy().astype(np.int64)

    def _duplicates(
        self, hashes: NDArray[np.uint64], groups: NDArray[np.int64] | None
    ) -> Iterable[tuple[int, int, int]]:
        """For each duplicate: its index, that of the kept row, and their largest distance."""
        columns = hashes if groups is None else np.column_stack([groups.astype(np.uint64), hashes])
        # Rows with equal hashes (constant images, say) are one item: buckets stay small.
        _, first_row, inverse = np.unique(
            columns[:, 0] if columns.shape[1] == 1 else columns,
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        order = np.argsort(first_row)
        firsts = first_row[order]
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        item = rank[inverse.reshape(-1)]

        def find(items: Indices) -> Iterable[Pairs]:
            selected = firsts[items]
            item_groups = None if groups is None else groups[selected]
            return near_pairs(hashes[selected], self.distance, item_groups)

        originals = duplicate_of(len(firsts), find)
        kept = firsts[np.where(originals < 0, np.arange(len(originals)), originals)][item]
        dropped = np.flatnonzero(kept != np.arange(len(item)))
        bits = np.zeros(len(dropped), np.int64)
        for column in hashes.T:
            bits = np.maximum(bits, differing_bits(column, dropped, kept[dropped]))
        return zip(dropped.tolist(), kept[dropped].tolist(), bits.tolist(), strict=True)


def _hashes(
    lists: pa.ListArray, rows: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The rows that have an image, and their hashes (n, k); 0 for media that are not images."""
    values = lists.take(pa.array(rows)).values
    is_image = values.is_valid().to_numpy(zero_copy_only=False).reshape(-1, size)
    hashes = values.fill_null(0).to_numpy().reshape(-1, size)
    return rows[is_image.any(axis=1)], hashes[is_image.any(axis=1)]


def _has_other_media(lists: pa.ChunkedArray) -> bool:
    return any(chunk.values.null_count for chunk in lists.chunks)


def _rest(key: str, hashes: list[int | None]) -> str:
    """A record's identity key without its images."""
    parts = key.split(" ")
    media = ["" if phash is not None else part for part, phash in zip(parts, hashes, strict=False)]
    return " ".join([*media, *parts[len(hashes) :]])
