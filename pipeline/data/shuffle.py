"""The shuffled stream of samples: seed-and-epoch permutations of the mixed data.

The samples of all epochs form one stream of positions, independent of ranks and workers; step s
takes the positions [s·G, (s+1)·G) of a global batch G. The order depends only on the sizes of the
data, the mix and the seed. Seeking to any step costs a few permutations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data folder in the mix.

    Args:
        first, rows: its range of rows in the data.
        samples_per_epoch: with fewer than `rows`, the next epoch continues with the remaining
            rows; with more, all rows come once before any repeats.
    """

    first: int
    rows: int
    samples_per_epoch: int


@dataclass(frozen=True, kw_only=True)
class ShuffledStream:
    """Which row of the data is at which position of the stream.

    Args:
        sources: the mix.
        seed: of the permutations.
        epochs: the number of epochs.
        limit: end after this many positions; None for no limit.
    """

    sources: tuple[Source, ...]
    seed: int
    epochs: int
    limit: int | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Positions of an epoch."""
        return sum(source.samples_per_epoch for source in self.sources)

    def __len__(self) -> int:
        """Return the number of positions of all epochs."""
        positions = self.samples_per_epoch * self.epochs
        return positions if self.limit is None else min(positions, self.limit)

    def rows(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the rows at the positions [first, end), up to the end of the stream."""
        rows = [np.empty(0, np.int64)]
        end = min(end, len(self))
        while first < end:
            epoch, offset = divmod(first, self.samples_per_epoch)
            count = min(end - first, self.samples_per_epoch - offset)
            shuffled = _permutation(self.samples_per_epoch, (self.seed, epoch))
            rows.append(self._mixed(epoch, shuffled[offset : offset + count].astype(np.int64)))
            first += count
        return np.concatenate(rows)

    def _mixed(self, epoch: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of an epoch's slots: each source has a contiguous range of slots."""
        rows = np.empty(len(slots), np.int64)
        start = 0
        for number, source in enumerate(self.sources):
            count = source.samples_per_epoch
            mask = (slots >= start) & (slots < start + count)
            # Counted from the first epoch, so that a source taken in part continues in the next.
            index = slots[mask] - start + epoch * count
            start += count
            if count % source.rows == 0:
                # Every epoch has each row equally often; the slots are shuffled already.
                rows[mask] = source.first + index % source.rows
                continue
            found = rows[mask]
            for repeat in np.unique(index // source.rows).tolist():
                chosen = index // source.rows == repeat
                shuffled = _permutation(source.rows, (self.seed, number, repeat))
                found[chosen] = source.first + shuffled[index[chosen] % source.rows]
            rows[mask] = found
        return rows


@functools.lru_cache(maxsize=8)
def _permutation(size: int, key: tuple[int, ...]) -> NDArray[Any]:
    """Return a permutation from a counter-based generator keyed by `key`."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint64)
    numbers = np.arange(size, dtype=np.uint32 if size <= 2**32 else np.int64)
    np.random.Generator(np.random.Philox(key=state)).shuffle(numbers)
    return numbers
