"""Texts as runs of hashed words, for telling which texts overlap."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl.dedup.hamming import ranges
from etl.storage.schema import PLACEHOLDER_PATTERN

_CJK = r"\u3040-\u30ff\u3400-\u9fff"  # written without blanks: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """A text's words: in lower case, without punctuation and placeholders of media."""
    return _WORD.findall(PLACEHOLDER_PATTERN.sub(" ", text).lower())


def spoken(turns: Sequence[Mapping[str, str]]) -> str:
    """What a record says: the texts of all its turns."""
    return "\n".join(turn["text"] for turn in turns)


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of many texts: their hashes one after the other, and where each text begins."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many words each text has."""
        return np.diff(self.offsets)


def hash_words(texts: Iterable[Sequence[str]]) -> Words:
    """Hash the words of texts: 64 bits each, the same in every process."""
    known: dict[str, int] = {}
    hashes: list[NDArray[np.uint64]] = []
    lengths = [0]
    for text in texts:
        for word in text:
            if word not in known:
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                known[word] = int.from_bytes(digest, "little")
        hashes.append(np.array([known[word] for word in text], np.uint64))
        lengths.append(len(text))
    joined = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    return Words(hashes=joined, offsets=np.cumsum(lengths))


def grams(found: Words, size: int, texts: NDArray[np.int64]) -> tuple[NDArray[np.uint64], ...]:
    """Hashes of the runs of words of some texts, and of each run which of these texts has it.

    Args:
        found: of all texts.
        size: words of a run.
        texts: numbers of the texts; one that is shorter has no run.
    """
    counts = np.maximum(0, found.lengths[texts] - size + 1)
    starts = ranges(found.offsets[texts], counts)
    values = np.full(len(starts), size, np.uint64)
    for place in range(size):
        values = (values ^ (values >> np.uint64(29))) * _FACTOR + found.hashes[starts + place]
    values ^= values >> np.uint64(32)
    return values * _FACTOR, np.repeat(np.arange(len(texts)), counts).astype(np.uint64)
