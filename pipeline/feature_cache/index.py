"""Where each key's features lie: 16 bytes a key, however long the keys are.

Of a key only its first 8 bytes are held, sorted, and beside each the place of its row; whoever
finds a place compares the whole key, which lies in the file. Of sorted runs two are merged when the
younger has grown as long as the older, so that n keys that come a few at a time are sorted log n
times.

Shapes: k keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_ROW_BITS = np.uint64(32)


class Index:
    """From the first 8 bytes of keys to the places of their rows."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def __len__(self) -> int:
        return sum(len(heads_k) for heads_k, _ in self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(heads_k.nbytes + places_k.nbytes for heads_k, places_k in self._runs)

    def add(self, part: int, heads_k: NDArray[np.uint64]) -> None:
        """Add the rows of a file.

        Args:
            part: the file's number.
            heads_k: the first 8 bytes of the key of each row.
        """
        places_k = (np.uint64(part) << _ROW_BITS) + np.arange(len(heads_k), dtype=np.uint64)
        self._runs.append(_sorted(heads_k, places_k))
        while len(self._runs) > 1 and len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            younger, older = self._runs.pop(), self._runs.pop()
            merged = (np.concatenate(pair) for pair in zip(older, younger, strict=True))
            self._runs.append(_sorted(*merged))

    def places(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Yield (file, row) of every key that begins as this one, the newest file last."""
        head = np.frombuffer(key[:8], np.uint64)[0]
        for heads_k, places_k in self._runs:
            first = int(heads_k.searchsorted(head))
            while first < len(heads_k) and heads_k[first] == head:
                place = int(places_k[first])
                yield place >> int(_ROW_BITS), place & ((1 << int(_ROW_BITS)) - 1)
                first += 1


def _sorted(
    heads_k: NDArray[np.uint64], places_k: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    order_k = heads_k.argsort(kind="stable")
    return heads_k[order_k], places_k[order_k]
