"""What a loss is to the step loop: a sum and a count, with a weight and a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.batch import Batch


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """A loss of one micro-batch.

    Args:
        total: the sum.
        count: the number of summands by which the sum counts in the denominator.
        per_target_m: the summands, one per text target, without a gradient; None for other losses.
    """

    total: Tensor
    count: int
    per_target_m: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One term of the weighted sum that a stage minimizes.

    Args:
        name: its key in `losses` of metrics.jsonl.
        weight: its factor in the sum.
        count: returns the count of a micro-batch on this rank. It is called before the forward
            pass, since the ranks first add the counts up over the global batch.
        fn: computes the loss from the model's output; its count must be the one announced.
    """

    name: str
    weight: float
    count: Callable[[Batch], int]
    fn: Callable[[Any], LossSum]
