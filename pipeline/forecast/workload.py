"""What samples cost: the average one that a forecast assumes, and what a run has processed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a sample brings, on average.

    Args:
        positions: in the backbone.
        targets: positions that are learnt from.
        pairs: of positions that see each other.
        media: of each kind, going in or coming out.
        encoded: those of them that an encoder reads, where the features of others are known; None
            for all.
    """

    positions: float
    targets: float
    pairs: float
    media: Mapping[str, float]
    encoded: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class WorkTotals:
    """What a run has worked on so far, over all ranks; see `Workload`.

    Args:
        samples, positions, targets, pairs: sums.
        media: media of each kind, going in or coming out.
        encoded: those of them that the encoder read (whose text it read, of media that come out);
            the features of the others were known.
        places: positions of the largest pass of any rank, padding included.
        memory: the highest peak of any rank so far, in bytes.
    """

    samples: float = 0.0
    positions: float = 0.0
    targets: float = 0.0
    pairs: float = 0.0
    media: Mapping[str, float]
    encoded: Mapping[str, float]
    places: float = 0.0
    memory: float = 0.0
