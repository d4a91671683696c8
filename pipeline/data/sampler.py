"""Which samples come when and where: step → passes → ranks → samples, without reading any.

The schedule is a pure function of the data, the mix, the seed and the step; ranks only decide how a
step is dealt out. So seeking to a step is as cheap as the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.lengths import Lengths
from pipeline.data.packing import Deal, Layout, Sizes, assign_to_ranks
from pipeline.data.shuffle import ShuffledStream


@dataclass(frozen=True, kw_only=True)
class SampleRef:
    """One sample of a step.

    Args:
        position: in the stream of samples.
        row: of the data.
        fault: why it cannot be used, as far as its text tells; None to read it.
    """

    position: int
    row: int
    fault: str | None = None


Bin = list[SampleRef]
"""The samples of one rank and pass."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What samples cost, in any one unit: FLOPs, say, see `pipeline.forecast.flops`.

    Args:
        position, target: of the backbone.
        pair: of positions of a sample that see each other.
        media: of one medium of each kind, before the backbone.
    """

    position: float = 1.0
    target: float = 0.0
    pair: float = 0.0
    media: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """The samples of every step.

    Args:
        order: of the samples.
        global_batch: samples of a step.
        layout: how the samples of a rank and pass lie in memory.
        lengths: of all rows; None where samples are taken as they come.
        prices: of the samples; they only matter where samples are packed.
    """

    order: ShuffledStream
    global_batch: int
    layout: Layout
    lengths: Lengths | None
    prices: CostModel

    @property
    def steps(self) -> int:
        """Steps of all epochs; the last one may have fewer samples."""
        return math.ceil(self.order.positions / self.global_batch)

    def step(self, step: int, ranks: int) -> list[list[Bin]]:
        """Return the bins of a step (counted from 0), by pass and rank."""
        first = step * self.global_batch
        rows = self.order.rows(first, first + self.global_batch)
        faults = self.lengths.faults if self.lengths else {}
        places = [
            SampleRef(position=first + number, row=row, fault=faults.get(row))
            for number, row in enumerate(rows.tolist())
        ]
        dealt: Deal = assign_to_ranks(self._sizes(rows), self.layout, ranks)
        return [[[places[sample] for sample in chosen] for chosen in turn] for turn in dealt]

    def _sizes(self, rows: NDArray[np.int64]) -> Sizes:
        zero_n = np.zeros(len(rows))
        none_n = zero_n.astype(np.int64)
        if self.lengths is None:
            return Sizes(tokens_n=none_n, media_n=none_n, encoding_n=zero_n, thinking_n=zero_n)
        prices = self.prices
        tokens_n = self.lengths.tokens_n[rows].astype(np.int64)
        targets_n = self.lengths.targets_n[rows]
        media_n, encoding_n = none_n, zero_n
        for kind, count_n in self.lengths.media_n.items():
            media_n = media_n + count_n[rows]
            encoding_n = encoding_n + prices.media[kind] * count_n[rows]
        pairs_n = tokens_n * (tokens_n + 1) / 2
        return Sizes(
            tokens_n=tokens_n,
            media_n=media_n,
            encoding_n=encoding_n,
            thinking_n=prices.position * tokens_n
            + prices.target * targets_n
            + prices.pair * pairs_n,
        )
