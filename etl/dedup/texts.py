"""Near-duplicate texts over a whole job: the earliest row is kept.

Candidates come from MinHash (Broder, *On the resemblance and containment of documents*, 1997) with
banding; the exact Jaccard similarity of their word n-grams then decides. Five words per n-gram, as
in Lee et al. (*Deduplicating Training Data Makes Language Models Better*, ACL 2022) and in FineWeb
(arXiv:2406.17557).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl.dedup.hamming import Indices, Pairs, mix, ranges
from etl.dedup.images import duplicate_of
from etl.dedup.ngrams import HashedWords, all_text, hash_words, ngrams, words
from etl.filters.base import FilterResult

_NGRAM_WORDS = 5
_BANDS = 32
_MISS_RATE = 0.05  # of pairs that are exactly as similar as required
_MAX_BAND_ROWS = 16
_NEIGHBOURS = 64  # texts of a bucket with which each of its texts is compared
_CHUNK = 1 << 14  # pairs
_SEED = 20220525
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class NearTexts:
    """Drops records whose text is similar to that of an earlier record (`near_duplicate_text`).

    Needs `row`, `key`, `phash` and `turns` of the whole job in input order. Records without words
    are kept. If `identity` is `record`, only records with the same media are compared.

    Finds 95 % of the pairs that are exactly as similar as required, more of those that are more
    similar, and none that are less. Holds 8 bytes per word of distinct texts, and the words
    themselves while they are hashed. In a bucket of more than 64 similar texts neighbours are
    compared first, so the row that a drop's detail names may itself have been dropped.

    Args:
        similarity: the minimum Jaccard similarity of near-duplicate texts, up to 1.
        identity: `medium` if texts alone decide, `record` if media must be the same, too.
    """

    similarity: float
    identity: Literal["medium", "record"]

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter the whole job's rows."""
        reasons: list[str | None] = [None] * table.num_rows
        details: list[str | None] = [None] * table.num_rows
        numbers = table["row"].to_numpy()
        texts = [words(all_text(turns)) for turns in table["turns"].to_pylist()]
        rows = np.flatnonzero([bool(text) for text in texts])
        media = self._media(table)
        contents = pa.array(
            [f"{media[row]}\n{' '.join(texts[row])}" for row in rows], pa.large_string()
        )
        # Rows with equal media and words are one item; items are in order of first appearance.
        item = contents.dictionary_encode().indices.to_numpy()
        _, firsts = np.unique(item, return_index=True)
        item_media = pa.array([media[rows[first]] for first in firsts], pa.string())
        groups = mix(item_media.dictionary_encode().indices.to_numpy().astype(np.uint64))
        hashed = hash_words(texts[row] for row in rows[firsts])
        originals = self._originals(hashed, groups)
        kept = firsts[np.where(originals < 0, np.arange(len(originals)), originals)][item]
        for dropped in np.flatnonzero(kept != np.arange(len(item))).tolist():
            reasons[rows[dropped]] = "near_duplicate_text"
            details[rows[dropped]] = f"like row {numbers[rows[kept[dropped]]]}"
        return FilterResult(reasons=reasons, details=details)

    def _media(self, table: pa.Table) -> list[str]:
        """For each row, what must be the same besides the text."""
        if self.identity == "medium":
            return [""] * table.num_rows
        keys = zip(table["key"].to_pylist(), table["phash"].to_pylist(), strict=True)
        return [" ".join(key.split(" ")[: len(media)]) for key, media in keys]

    def _originals(self, hashed: HashedWords, groups: NDArray[np.uint64]) -> Indices:
        """For each distinct text the earlier one that it duplicates, or -1."""
        originals = np.full(len(groups), -1, np.int64)
        while True:
            remaining = np.flatnonzero(originals < 0)
            grams = _Ngrams(hashed, remaining)
            find = functools.partial(self._near, grams, groups[remaining])
            found = duplicate_of(len(remaining), find)
            dropped = found >= 0
            originals[remaining[dropped]] = remaining[found[dropped]]
            if not dropped.any() or not grams.truncated:
                return originals

    def _near(self, grams: _Ngrams, groups: NDArray[np.uint64], items: Indices) -> Iterator[Pairs]:
        index = np.full(len(groups), -1, np.int64)
        index[items] = np.arange(len(items))
        for left, right in grams.candidates(self.similarity, groups, items):
            near = grams.jaccard(left, right) >= self.similarity
            near &= groups[left] == groups[right]
            yield index[left[near]], index[right[near]]


class _Ngrams:
    """The n-grams of some texts, sorted and distinct within each text.

    Args:
        hashed: the words of all texts.
        texts: numbers of the selected texts; they are renumbered from 0.
    """

    def __init__(self, hashed: HashedWords, texts: Indices) -> None:
        values, owners = [], []
        # A text shorter than an n-gram is a single, shorter one.
        sizes = np.minimum(hashed.lengths[texts], _NGRAM_WORDS)
        for size in range(1, _NGRAM_WORDS + 1):
            selected = np.flatnonzero(sizes == size)
            value, owner = ngrams(hashed, size, texts[selected])
            values.append(value)
            owners.append(selected[owner.astype(np.int64)])
        value, owner = np.concatenate(values), np.concatenate(owners)
        order = np.lexsort((value, owner))
        value, owner = value[order], owner[order]
        distinct = np.ones(len(value), bool)
        distinct[1:] = (value[1:] != value[:-1]) | (owner[1:] != owner[:-1])
        self._values = value[distinct]
        self._sizes = np.bincount(owner[distinct], minlength=len(texts))
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.truncated = False
        """Whether a bucket was too large to compare all of its texts."""

    def candidates(
        self, similarity: float, groups: NDArray[np.uint64], items: Indices
    ) -> Iterator[Pairs]:
        """Yield pairs of texts of one group that share a band of MinHashes; each pair once."""
        rows = int(math.log(1 - _MISS_RATE ** (1 / _BANDS)) / math.log(min(similarity, 0.99)))
        rows = min(max(rows, 1), _MAX_BAND_ROWS)
        rng = np.random.default_rng(_SEED)
        factors = rng.integers(0, 1 << 63, (_BANDS, rows), dtype=np.uint64) * 2 + 1
        values = self._values[ranges(self._starts[items], self._sizes[items])]
        starts = np.cumsum(self._sizes[items]) - self._sizes[items]
        seen = np.empty(0, np.uint64)
        for band in factors if len(items) else ():
            keys = groups[items]
            for factor in band:
                smallest = np.minimum.reduceat(mix(values * factor), starts)
                keys = mix(keys ^ smallest)
            order = np.argsort(keys, kind="stable")
            keys, ordered = keys[order], items[order]
            pairs = np.setdiff1d(self._neighbours(keys, ordered), seen, assume_unique=True)
            seen = np.concatenate([seen, pairs])
            for start in range(0, len(pairs), _CHUNK):
                chunk = pairs[start : start + _CHUNK]
                yield (chunk >> _HALF).astype(np.int64), (chunk & _LOW).astype(np.int64)

    def _neighbours(self, keys: NDArray[np.uint64], texts: Indices) -> NDArray[np.uint64]:
        """Pairs of texts whose sorted keys are equal, each as one number."""
        parts = [np.empty(0, np.uint64)]
        for step in range(1, _NEIGHBOURS + 1):
            equal = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(equal):
                return np.concatenate(parts)
            pairs = texts[equal].astype(np.uint64) << _HALF
            parts.append(pairs | texts[equal + step].astype(np.uint64))
        self.truncated = True
        return np.concatenate(parts)

    def jaccard(self, left: Indices, right: Indices) -> NDArray[np.float64]:
        """The Jaccard similarity of each pair."""
        pairs = np.arange(len(left))
        owner = np.concatenate([np.repeat(pairs, self._sizes[side]) for side in (left, right)])
        indices = [ranges(self._starts[side], self._sizes[side]) for side in (left, right)]
        value = self._values[np.concatenate(indices)]
        order = np.lexsort((value, owner))
        value, owner = value[order], owner[order]
        shared = (value[1:] == value[:-1]) & (owner[1:] == owner[:-1])
        both = np.bincount(owner[1:][shared], minlength=len(left))
        return both / (self._sizes[left] + self._sizes[right] - both)
