"""Which sample each data worker is decoding now, so that a stalled worker can be named."""

from __future__ import annotations

import numpy as np
import torch

_LINE_BYTES = 160


class WorkerStatus:
    """One line of text per data worker, in memory shared by the rank and its workers.

    Args:
        workers: processes that decode for this rank; with 0 the rank decodes by itself.
    """

    def __init__(self, workers: int = 0) -> None:
        self._lines = torch.zeros(max(1, workers), _LINE_BYTES, dtype=torch.uint8).share_memory_()

    def write(self, text: str) -> None:
        """Set the line of this process; an empty text means idle."""
        worker = torch.utils.data.get_worker_info()
        line = text.encode()[:_LINE_BYTES].ljust(_LINE_BYTES, b"\0")
        self._lines[worker.id if worker else 0].numpy()[:] = np.frombuffer(line, np.uint8)

    def read(self) -> tuple[str, ...]:
        """Return the lines of all workers that are not idle."""
        lines = (bytes(line.tolist()).rstrip(b"\0") for line in self._lines)
        return tuple(line.decode(errors="replace") for line in lines if line)
