"""What each data worker is decoding now, so that a stalled one can be named."""

from __future__ import annotations

import numpy as np
import torch

_LINE = 160


class WorkerStatus:
    """What each data worker is decoding, in memory that the rank and its workers share.

    Args:
        workers: processes that decode for this rank; with 0 the rank does it itself.
    """

    def __init__(self, workers: int = 0) -> None:
        self._lines = torch.zeros(max(1, workers), _LINE, dtype=torch.uint8).share_memory_()

    def write(self, text: str) -> None:
        """Say what this process is at now; an empty text: at nothing."""
        worker = torch.utils.data.get_worker_info()
        line = text.encode()[:_LINE].ljust(_LINE, b"\0")
        self._lines[worker.id if worker else 0].numpy()[:] = np.frombuffer(line, np.uint8)

    def read(self) -> tuple[str, ...]:
        """Return what the workers are at, without those that are at nothing."""
        lines = (bytes(line.tolist()).rstrip(b"\0") for line in self._lines)
        return tuple(line.decode(errors="replace") for line in lines if line)
