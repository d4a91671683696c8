"""Rows that hold what evaluation sets hold: their images, or runs of their words.

Words after GPT-3's appendix C (arXiv:2005.14165): runs of 13 words without case and punctuation;
an evaluation text of 8 to 12 words counts as one run, shorter ones tell nothing; a run that more
than ten rows have is a common phrase. Images as COYO-700M was cleared of ImageNet, COCO and others,
by perceptual hash, but within a distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl.dedup.hamming import near_pairs
from etl.dedup.ngrams import grams, hash_words, spoken, words
from etl.filters.base import Verdict

RUN = 13
LEAST = 8
COMMON = 10


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of an evaluation set: its name, texts, and images' digests and perceptual hashes."""

    name: str
    texts: Sequence[str] = ()
    digests: Sequence[str] = ()
    hashes: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class EvalImages:
    """Drops rows with an image of an evaluation set (`eval_image`); the detail names its item.

    Needs `key` and `phash`. An image is the same if its bytes are, or its hash within a distance.

    Args:
        items: yields those of the evaluation sets; read when the first batch comes.
        distance: the most bits of 64 that may differ.
    """

    items: Iterable[Item]
    distance: int

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge the whole job's rows."""
        names: dict[str, str] = {}
        hashes: dict[int, str] = {}
        for item in self.items:
            names.update({digest: item.name for digest in item.digests if digest not in names})
            hashes.update({one: item.name for one in item.hashes if one not in hashes})
        lists = table["phash"].to_pylist()
        seen = {one for row in lists for one in row if one is not None}
        near = _near(seen, hashes, self.distance)
        reasons, details = [], []
        for key, row in zip(table["key"].to_pylist(), lists, strict=True):
            same = [names[part] for part in key.split(" ")[: len(row)] if part in names]
            alike = [
                f"{name}, {bits} bits off"
                for one in row
                if one in near
                for name, bits in [near[one]]
            ]
            found = next(iter([*same, *alike]), None)
            reasons.append(found and "eval_image")
            details.append(found)
        return Verdict(reasons=reasons, details=details)


def _near(seen: Iterable[int], known: dict[int, str], distance: int) -> dict[int, tuple[str, int]]:
    """Of the hashes that are near a known one, its name and how many bits differ."""
    every = np.unique(np.array([*seen, *known], np.uint64))
    listed = np.isin(every, np.array([*known], np.uint64))
    found: dict[int, tuple[str, int]] = {}
    for left, right in near_pairs(every, distance, None):
        for one, other in ((left, right), (right, left)):
            across = listed[other] & ~listed[one]
            pairs = zip(every[one[across]].tolist(), every[other[across]].tolist(), strict=True)
            for mine, theirs in pairs:
                nearer = (known[theirs], (mine ^ theirs).bit_count())
                found[mine] = min(found.get(mine, nearer), nearer, key=lambda f: (f[1], f[0]))
    return {**found, **{value: (name, 0) for value, name in known.items()}}


@dataclass(frozen=True, kw_only=True)
class EvalTexts:
    """Drops rows that share a run of words with an evaluation set (`eval_text`).

    Needs `turns`. The detail names the item.

    Args:
        items: see `EvalImages`.
    """

    items: Iterable[Item]

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge the whole job's rows."""
        names: list[str] = []
        said: list[list[str]] = []
        for item in self.items:
            for text in map(words, item.texts):
                if len(text) >= LEAST:
                    names.append(item.name)
                    said.append(text)
        theirs = hash_words(said)
        ours = hash_words(words(spoken(turns)) for turns in table["turns"].to_pylist())
        found: dict[int, str] = {}
        sizes = np.minimum(theirs.lengths, RUN)
        rows = np.arange(table.num_rows)
        for size in np.unique(sizes).tolist():
            some = np.flatnonzero(sizes == size)
            value, owner = grams(theirs, size, some)
            value, first = np.unique(value, return_index=True)
            value_here, row = grams(ours, size, rows)
            hit = np.isin(value_here, value)
            hits = np.unique(np.stack([value_here[hit], row[hit]]), axis=1)
            runs, place, count = np.unique(hits[0], return_inverse=True, return_counts=True)
            rare = count[place] <= COMMON
            item_of = some[owner[first[np.searchsorted(value, runs)]].astype(np.int64)]
            for late, text in zip(
                hits[1][rare].tolist(), item_of[place[rare]].tolist(), strict=True
            ):
                found.setdefault(late, names[text])
        reasons = ["eval_text" if row in found else None for row in range(table.num_rows)]
        return Verdict(reasons=reasons, details=[found.get(row) for row in range(table.num_rows)])
