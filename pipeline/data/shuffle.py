"""The order of samples: a pure function of the data's sizes, the mix and the seed.

The samples of all epochs form one stream of positions, whatever the ranks and workers; step s takes
the positions [s·G, (s+1)·G) of a global batch G. Seeking to any step costs a few permutations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of samples in a stream.

    Args:
        first, rows: which rows of the data it is.
        draws: how many of them an epoch takes. Where it takes fewer than all, the next epoch goes
            on with the others; where it takes more, all come before any comes again.
    """

    first: int
    rows: int
    draws: int


@dataclass(frozen=True, kw_only=True)
class ShuffledStream:
    """Which row stands at which position of the stream.

    Args:
        sources: what an epoch is made of.
        seed: of the permutations.
        epochs: how many there are.
    """

    sources: tuple[Source, ...]
    seed: int
    epochs: int

    @property
    def per_epoch(self) -> int:
        """Positions of an epoch."""
        return sum(source.draws for source in self.sources)

    @property
    def positions(self) -> int:
        """Length of the stream."""
        return self.per_epoch * self.epochs

    def rows(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the rows at the positions [first, end), as far as the stream goes."""
        parts = [np.empty(0, np.int64)]
        end = min(end, self.positions)
        while first < end:
            epoch, offset = divmod(first, self.per_epoch)
            taken = min(end - first, self.per_epoch - offset)
            places = _permutation(self.per_epoch, (self.seed, epoch))[offset : offset + taken]
            parts.append(self._at(epoch, places.astype(np.int64)))
            first += taken
        return np.concatenate(parts)

    def _at(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of an epoch's places: the sources' draws, one source after the other."""
        rows = np.empty(len(places), np.int64)
        start = 0
        for number, source in enumerate(self.sources):
            own = (places >= start) & (places < start + source.draws)
            drawn = places[own] - start + epoch * source.draws  # since the first epoch
            start += source.draws
            if (
                source.draws % source.rows == 0
            ):  # whole passes: the epoch's places are random enough
                rows[own] = source.first + drawn % source.rows
                continue
            inner = rows[own]
            for turn in np.unique(drawn // source.rows).tolist():
                here = drawn // source.rows == turn
                shuffled = _permutation(source.rows, (self.seed, number, turn))
                inner[here] = source.first + shuffled[drawn[here] % source.rows]
            rows[own] = inner
        return rows


@functools.lru_cache(maxsize=8)
def _permutation(size: int, key: tuple[int, ...]) -> NDArray[Any]:
    """Draw a permutation from a counter-based generator with a key of its own."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint64)
    numbers = np.arange(size, dtype=np.uint32 if size <= 2**32 else np.int64)
    np.random.Generator(np.random.Philox(key=state)).shuffle(numbers)
    return numbers
