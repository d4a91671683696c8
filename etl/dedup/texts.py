"""Near duplicates of texts over a whole job: the earliest row stays.

Candidates come from MinHash (Broder, *On the resemblance and containment of documents*, 1997) in
bands; which of them are near is decided by the Jaccard similarity of their runs of words itself.
Runs of five words are those of Lee et al. (*Deduplicating Training Data Makes Language Models
Better*, ACL 2022) and of FineWeb (arXiv:2406.17557).
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
from etl.dedup.images import earlier_twins
from etl.dedup.ngrams import Words, grams, hash_words, spoken, words
from etl.filters.base import Verdict

_RUN = 5
_BANDS = 32
_MISSED = 0.05
_MOST_ROWS = 16
_NEIGHBOURS = 64  # of a bucket with which each of its texts is compared
_AT_A_TIME = 1 << 14  # pairs
_SEED = 20220525
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class NearTexts:
    """Drops records whose text is near that of an earlier record (`near_duplicate_text`).

    Needs `row`, `key`, `phash` and `turns` of the whole job in the input's order. A record without
    a word is kept. Where `identity` is `record`, only records with the same media are compared.

    Finds 95 % of the pairs that are just as similar as `jaccard`, more of those that are more so,
    and none that are less. Holds 8 bytes per word of distinct texts, and the words themselves while
    they are hashed. Of a bucket of more than 64 alike texts the nearest are compared first, so the
    row that a drop names may have gone for an earlier one.

    Args:
        jaccard: the least similarity of near texts, up to 1.
        identity: `medium` if texts alone decide, `record` if media must be the same, too.
    """

    jaccard: float
    identity: Literal["medium", "record"]

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge the whole job's rows."""
        reasons: list[str | None] = [None] * table.num_rows
        details: list[str | None] = [None] * table.num_rows
        numbers = table["row"].to_numpy()
        texts = [words(spoken(turns)) for turns in table["turns"].to_pylist()]
        rows = np.flatnonzero([bool(text) for text in texts])
        media = self._media(table)
        said = pa.array(
            [f"{media[row]}\n{' '.join(texts[row])}" for row in rows], pa.large_string()
        )
        codes = said.dictionary_encode()  # in the order in which each appears first
        item = codes.indices.to_numpy()
        _, firsts = np.unique(item, return_index=True)
        named = pa.array([media[rows[first]] for first in firsts], pa.string())
        groups = mix(named.dictionary_encode().indices.to_numpy().astype(np.uint64))
        found = hash_words(texts[row] for row in rows[firsts])
        twins = self._twins(found, groups)
        keepers = firsts[np.where(twins < 0, np.arange(len(twins)), twins)][item]
        for late in np.flatnonzero(keepers != np.arange(len(item))).tolist():
            reasons[rows[late]] = "near_duplicate_text"
            details[rows[late]] = f"like row {numbers[rows[keepers[late]]]}"
        return Verdict(reasons=reasons, details=details)

    def _media(self, table: pa.Table) -> list[str]:
        """Of each row what must be the same besides the text."""
        if self.identity == "medium":
            return [""] * table.num_rows
        keys = zip(table["key"].to_pylist(), table["phash"].to_pylist(), strict=True)
        return [" ".join(key.split(" ")[: len(media)]) for key, media in keys]

    def _twins(self, found: Words, groups: NDArray[np.uint64]) -> Indices:
        """Of each distinct text the earlier one that it goes for, or -1."""
        twins = np.full(len(groups), -1, np.int64)
        while True:
            left = np.flatnonzero(twins < 0)
            runs = _Runs(found, left)
            find = functools.partial(self._near, runs, groups[left])
            more = earlier_twins(len(left), find)
            gone = more >= 0
            twins[left[gone]] = left[more[gone]]
            if not gone.any() or not runs.cut:
                return twins

    def _near(self, runs: _Runs, groups: NDArray[np.uint64], items: Indices) -> Iterator[Pairs]:
        places = np.full(len(groups), -1, np.int64)
        places[items] = np.arange(len(items))
        for left, right in runs.candidates(self.jaccard, groups, items):
            near = runs.similarity(left, right) >= self.jaccard
            near &= groups[left] == groups[right]
            yield places[left[near]], places[right[near]]


class _Runs:
    """The runs of words of some texts, each text's sorted and distinct.

    Args:
        found: the words of all texts.
        texts: numbers of those that count; they are numbered anew.
    """

    def __init__(self, found: Words, texts: Indices) -> None:
        values, owners = [], []
        # A text shorter than a run is one run; those are few sizes.
        sizes = np.minimum(found.lengths[texts], _RUN)
        for size in range(1, _RUN + 1):
            some = np.flatnonzero(sizes == size)
            value, owner = grams(found, size, texts[some])
            values.append(value)
            owners.append(some[owner.astype(np.int64)])
        value, owner = np.concatenate(values), np.concatenate(owners)
        order = np.lexsort((value, owner))
        value, owner = value[order], owner[order]
        distinct = np.ones(len(value), bool)
        distinct[1:] = (value[1:] != value[:-1]) | (owner[1:] != owner[:-1])
        self._values = value[distinct]
        self._sizes = np.bincount(owner[distinct], minlength=len(texts))
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.cut = False
        """Whether a bucket was too large to be searched whole."""

    def candidates(
        self, jaccard: float, groups: NDArray[np.uint64], items: Indices
    ) -> Iterator[Pairs]:
        """Pairs of texts of one group that share a band of MinHashes; each pair once."""
        rows = int(math.log(1 - _MISSED ** (1 / _BANDS)) / math.log(min(jaccard, 0.99)))
        rows = min(max(rows, 1), _MOST_ROWS)
        rng = np.random.default_rng(_SEED)
        factors = rng.integers(0, 1 << 63, (_BANDS, rows), dtype=np.uint64) * 2 + 1
        values = self._values[ranges(self._starts[items], self._sizes[items])]
        starts = np.cumsum(self._sizes[items]) - self._sizes[items]
        seen = np.empty(0, np.uint64)
        for band in factors if len(items) else ():
            keys = groups[items]
            for factor in band:
                least = np.minimum.reduceat(mix(values * factor), starts)
                keys = mix(keys ^ least)
            order = np.argsort(keys, kind="stable")
            keys, placed = keys[order], items[order]
            pairs = np.setdiff1d(self._neighbours(keys, placed), seen, assume_unique=True)
            seen = np.concatenate([seen, pairs])
            for part in range(0, len(pairs), _AT_A_TIME):
                some = pairs[part : part + _AT_A_TIME]
                yield (some >> _HALF).astype(np.int64), (some & _LOW).astype(np.int64)

    def _neighbours(self, keys: NDArray[np.uint64], texts: Indices) -> NDArray[np.uint64]:
        """Pairs of texts whose sorted keys are equal, each as one number."""
        parts = [np.empty(0, np.uint64)]
        for step in range(1, _NEIGHBOURS + 1):
            here = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(here):
                return np.concatenate(parts)
            pairs = texts[here].astype(np.uint64) << _HALF
            parts.append(pairs | texts[here + step].astype(np.uint64))
        self.cut = True
        return np.concatenate(parts)

    def similarity(self, left: Indices, right: Indices) -> NDArray[np.float64]:
        """The Jaccard similarity of each pair."""
        pairs = np.arange(len(left))
        owner = np.concatenate([np.repeat(pairs, self._sizes[side]) for side in (left, right)])
        places = [ranges(self._starts[side], self._sizes[side]) for side in (left, right)]
        value = self._values[np.concatenate(places)]
        order = np.lexsort((value, owner))
        value, owner = value[order], owner[order]
        shared = (value[1:] == value[:-1]) & (owner[1:] == owner[:-1])
        both = np.bincount(owner[1:][shared], minlength=len(left))
        return both / (self._sizes[left] + self._sizes[right] - both)
