"""The device that answers questions, and as many questions at a time as its memory holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from etl.cli import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def inference_device() -> torch.device:
    """Return this machine's accelerator, or the CPU without one or with DS_ACCELERATOR=cpu."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return accelerator


class FittingBatches:
    """Works on batches in parts that fit into memory: halved whenever one does not.

    Args:
        size: the largest part, and the first to be tried.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def map(
        self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]
    ) -> list[Result]:
        """Return the results of `work` on all items, in order.

        Raises:
            UserError: a single item does not fit.
        """
        results: list[Result] = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.size]
            try:
                results += work(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    reason = str(error).splitlines()[0]
                    raise UserError(f"one question does not fit into memory: {reason}") from None
                self.size = (len(part) + 1) // 2
                log.info("%d questions do not fit into memory; asking %d", len(part), self.size)
                if torch.accelerator.is_available():
                    torch.accelerator.empty_cache()
        return results
