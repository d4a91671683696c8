"""The index of a feature store: which file and row holds a key's features, in 16 bytes per key.

In memory are only the first 8 bytes of each key, sorted, and the location of its row; the reader
compares the whole key, which is in the file. Two sorted runs are merged once the younger is as long
as the older, so that n keys added a few at a time are sorted log n times.

Shapes: k keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_ROW_BITS = np.uint64(32)


class Index:
    """Maps the first 8 bytes of keys to the locations of their rows."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def __len__(self) -> int:
        return sum(len(prefixes_k) for prefixes_k, _ in self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(prefixes_k.nbytes + locations_k.nbytes for prefixes_k, locations_k in self._runs)

    def add(self, file: int, prefixes_k: NDArray[np.uint64]) -> None:
        """Add the rows of a file.

        Args:
            file: the file's number.
            prefixes_k: the first 8 bytes of the key of each row.
        """
        rows_k = np.arange(len(prefixes_k), dtype=np.uint64)
        self._runs.append(_sorted(prefixes_k, (np.uint64(file) << _ROW_BITS) + rows_k))
        while len(self._runs) > 1 and len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            younger, older = self._runs.pop(), self._runs.pop()
            merged = (np.concatenate(pair) for pair in zip(older, younger, strict=True))
            self._runs.append(_sorted(*merged))

    def find(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Yield (file, row) of every key with the same first 8 bytes, the newest file last."""
        prefix = np.frombuffer(key[:8], np.uint64)[0]
        for prefixes_k, locations_k in self._runs:
            first = int(prefixes_k.searchsorted(prefix))
            while first < len(prefixes_k) and prefixes_k[first] == prefix:
                location = int(locations_k[first])
                yield location >> int(_ROW_BITS), location & ((1 << int(_ROW_BITS)) - 1)
                first += 1


def _sorted(
    prefixes_k: NDArray[np.uint64], locations_k: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    order_k = prefixes_k.argsort(kind="stable")
    return prefixes_k[order_k], locations_k[order_k]
