"""Hashed word n-grams of texts, for finding overlapping texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl.dedup.hamming import ranges
from etl.storage.schema import words_of

_CJK = r"\u3040-\u30ff\u3400-\u9fff"  # written without blanks: each character is a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """A text's words in lower case, without punctuation and media placeholders."""
    return _WORD.findall(words_of(text, " ").lower())


def all_text(turns: Sequence[Mapping[str, str]]) -> str:
    """The texts of all of a record's turns."""
    return "\n".join(turn["text"] for turn in turns)


@dataclass(frozen=True, kw_only=True)
class HashedWords:
    """The words of many texts: their concatenated hashes, and the offset of each text."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of words in each text."""
        return np.diff(self.offsets)


def hash_words(texts: Iterable[Sequence[str]]) -> HashedWords:
    """Hash the words of texts: 64 bits each, the same in every process."""
    digests: dict[str, int] = {}
    hashes: list[NDArray[np.uint64]] = []
    lengths = [0]
    for text in texts:
        for word in text:
            if word not in digests:
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                digests[word] = int.from_bytes(digest, "little")
        hashes.append(np.array([digests[word] for word in text], np.uint64))
        lengths.append(len(text))
    joined = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    return HashedWords(hashes=joined, offsets=np.cumsum(lengths))


def ngrams(
    hashed: HashedWords, size: int, texts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], ...]:
    """Hashes of the n-grams of some texts, and for each n-gram the index into `texts`.

    Args:
        hashed: the words of all texts.
        size: words of an n-gram.
        texts: numbers of the texts; one that is shorter has no n-gram.
    """
    counts = np.maximum(0, hashed.lengths[texts] - size + 1)
    starts = ranges(hashed.offsets[texts], counts)
    values = np.full(len(starts), size, np.uint64)
    for offset in range(size):
        values = (values ^ (values >> np.uint64(29))) * _FACTOR + hashed.hashes[starts + offset]
    values ^= values >> np.uint64(32)
    return values * _FACTOR, np.repeat(np.arange(len(texts)), counts).astype(np.uint64)
