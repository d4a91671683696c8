"""Decontamination: drops rows that contain an evaluation set's images or word n-grams.

Words as in GPT-3's appendix C (arXiv:2005.14165): 13-grams without case and punctuation; an
evaluation text of 8 to 12 words counts as one n-gram, shorter ones are ignored; an n-gram in more
than ten rows is a common phrase. Images as COYO-700M was decontaminated against ImageNet, COCO and
others, by perceptual hash, but within a distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl.dedup.hamming import near_pairs
from etl.dedup.ngrams import all_text, hash_words, ngrams, words
from etl.filters.base import FilterResult

NGRAM_WORDS = 13
MIN_WORDS = 8
MAX_ROWS = 10
"""Rows that may share an n-gram before it counts as a common phrase."""


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """One item of an evaluation set: name, texts, and its images' digests and perceptual hashes."""

    name: str
    texts: Sequence[str] = ()
    digests: Sequence[str] = ()
    hashes: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class EvalImages:
    """Drops rows with an image of an evaluation set (`eval_image`); the detail names its item.

    Needs `key` and `phash`. Images match if their bytes do, or their hashes within a distance.

    Args:
        items: the items of the evaluation sets; read on the first call.
        distance: the maximum Hamming distance of the 64-bit hashes.
    """

    items: Iterable[EvalItem]
    distance: int

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter the whole job's rows."""
        names: dict[str, str] = {}
        hashes: dict[int, str] = {}
        for item in self.items:
            names.update({digest: item.name for digest in item.digests if digest not in names})
            hashes.update({phash: item.name for phash in item.hashes if phash not in hashes})
        lists = table["phash"].to_pylist()
        job_hashes = {phash for row in lists for phash in row if phash is not None}
        near = _near(job_hashes, hashes, self.distance)
        reasons, details = [], []
        for key, row in zip(table["key"].to_pylist(), lists, strict=True):
            same = [names[part] for part in key.split(" ")[: len(row)] if part in names]
            similar = [
                f"{name}, {bits} bits off"
                for phash in row
                if phash in near
                for name, bits in [near[phash]]
            ]
            found = next(iter([*same, *similar]), None)
            reasons.append(found and "eval_image")
            details.append(found)
        return FilterResult(reasons=reasons, details=details)


def _near(
    hashes: Iterable[int], evaluation: dict[int, str], distance: int
) -> dict[int, tuple[str, int]]:
    """Each hash near one of an evaluation set → that item's name, and how many bits differ."""
    every = np.unique(np.array([*hashes, *evaluation], np.uint64))
    listed = np.isin(every, np.array([*evaluation], np.uint64))
    found: dict[int, tuple[str, int]] = {}
    for left, right in near_pairs(every, distance, None):
        for one, other in ((left, right), (right, left)):
            across = listed[other] & ~listed[one]
            pairs = zip(every[one[across]].tolist(), every[other[across]].tolist(), strict=True)
            for mine, theirs in pairs:
                nearer = (evaluation[theirs], (mine ^ theirs).bit_count())
                found[mine] = min(found.get(mine, nearer), nearer, key=lambda f: (f[1], f[0]))
    return {**found, **{value: (name, 0) for value, name in evaluation.items()}}


@dataclass(frozen=True, kw_only=True)
class EvalTexts:
    """Drops rows that share a word n-gram with an evaluation set (`eval_text`).

    Needs `turns`. The detail names the item.

    Args:
        items: see `EvalImages`.
    """

    items: Iterable[EvalItem]

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter the whole job's rows."""
        names: list[str] = []
        texts: list[list[str]] = []
        for item in self.items:
            for text in map(words, item.texts):
                if len(text) >= MIN_WORDS:
                    names.append(item.name)
                    texts.append(text)
        theirs = hash_words(texts)
        ours = hash_words(words(all_text(turns)) for turns in table["turns"].to_pylist())
        found: dict[int, str] = {}
        sizes = np.minimum(theirs.lengths, NGRAM_WORDS)
        rows = np.arange(table.num_rows)
        for size in np.unique(sizes).tolist():
            selected = np.flatnonzero(sizes == size)
            their_grams, owner = ngrams(theirs, size, selected)
            their_grams, first = np.unique(their_grams, return_index=True)
            our_grams, row = ngrams(ours, size, rows)
            hit = np.isin(our_grams, their_grams)
            hits = np.unique(np.stack([our_grams[hit], row[hit]]), axis=1)
            grams, index, count = np.unique(hits[0], return_inverse=True, return_counts=True)
            rare = count[index] <= MAX_ROWS
            item_of = selected[owner[first[np.searchsorted(their_grams, grams)]].astype(np.int64)]
            matches = zip(hits[1][rare].tolist(), item_of[index[rare]].tolist(), strict=True)
            for matching_row, item_number in matches:
                found.setdefault(matching_row, names[item_number])
        reasons = ["eval_text" if row in found else None for row in range(table.num_rows)]
        details = [found.get(row) for row in range(table.num_rows)]
        return FilterResult(reasons=reasons, details=details)
