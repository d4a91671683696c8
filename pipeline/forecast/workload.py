"""The work of training: the average sample of a forecast, and the totals of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The average sample.

    Args:
        positions: in the backbone.
        targets: positions with a label.
        pairs: of positions of which one attends to the other.
        media: media of each kind, input and output.
    """

    positions: float
    targets: float
    pairs: float
    media: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class WorkTotals:
    """What a run has processed so far, over all ranks; see `Workload`.

    Args:
        samples, positions, targets, pairs: sums.
        media: media of each kind, input and output.
        max_positions: of the largest micro-batch of any rank, padding included.
        memory: the highest peak of any rank so far, in bytes.
    """

    samples: float = 0.0
    positions: float = 0.0
    targets: float = 0.0
    pairs: float = 0.0
    media: Mapping[str, float]
    max_positions: float = 0.0
    memory: float = 0.0
