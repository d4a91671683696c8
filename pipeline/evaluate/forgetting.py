"""Forgetting of a model that learns tasks one after the other.

Accuracies are a matrix: row i has the accuracy of every task after task i was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What is left of all tasks after the last one.

    Args:
        accuracy: the mean over all tasks, in the last row (Lopez-Paz and Ranzato 2017, *Gradient
            episodic memory*, eq. 2).
        backward_transfer: how much better each earlier task is at the end than right after it was
            trained, on average; negative where it was forgotten (their eq. 3).
        forgetting: how much worse each earlier task is at the end than at its best, on average
            (Chaudhry et al. 2018, *Riemannian walk*, §3.2); never less than minus the transfer.
    """

    accuracy: float
    backward_transfer: float
    forgetting: float


def measure_forgetting(accuracies: Sequence[Sequence[float]]) -> Forgetting:
    """Measure forgetting from the accuracies of at least two tasks.

    Args:
        accuracies: a square matrix; row i, after training task i, has the accuracy of each task.

    Raises:
        ValueError: another shape.
    """
    tasks = len(accuracies)
    if tasks < 2 or any(len(row) != tasks for row in accuracies):
        shape = [len(row) for row in accuracies]
        raise ValueError(f"accuracies: rows of {shape} tasks, want two or more in a square matrix")
    last, earlier = accuracies[-1], range(tasks - 1)
    transfer = [last[task] - accuracies[task][task] for task in earlier]
    lost = [max(row[task] for row in accuracies[:-1]) - last[task] for task in earlier]
    return Forgetting(
        accuracy=sum(last) / tasks,
        backward_transfer=sum(transfer) / len(transfer),
        forgetting=sum(lost) / len(lost),
    )
