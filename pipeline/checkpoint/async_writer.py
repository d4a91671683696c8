"""Asynchronous checkpoint writing: training waits only for a copy in host memory, not for disks.

    copy     all ranks, between two steps (`pipeline.checkpoint.snapshot`)
    write    a thread of each rank
    publish  rank 0's thread, once all ranks have written: manifest, rename, `latest`, pruning

The ranks exchange their `SaveStatus` in `StepSync` before every step. So no rank waits for the
files of another, and all ranks learn of one that cannot write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from safetensors import SafetensorError


@dataclass(frozen=True, kw_only=True)
class SaveStatus:
    """The number of ranks that are still writing a checkpoint, and of those that failed to."""

    busy: int = 0
    failed: int = 0


class AsyncWriter:
    """A thread of this rank that runs one task at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._task: Future[None] | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Run a task in the background."""
        self._task = self._pool.submit(task)

    def wait(self) -> None:
        """Wait until the task has finished or failed."""
        if self._task is not None:
            self._task.exception()

    @property
    def status(self) -> SaveStatus:
        """This rank's status; raises what the task raised unless that was a disk error."""
        if self._task is None:
            return SaveStatus()
        if not self._task.done():
            return SaveStatus(busy=1)
        return SaveStatus(failed=int(self.error is not None))

    @property
    def error(self) -> str | None:
        """The disk error that the finished task failed with, or None if it succeeded.

        Raises:
            Exception: whatever else the task raised.
        """
        error = self._task.exception() if self._task is not None else None
        if error is None:
            return None
        message = disk_error(error)
        if message is None:
            raise error
        return message


def disk_error(error: BaseException) -> str | None:
    """Return the operating system's message if something could not be written; None otherwise.

    PyTorch and safetensors raise errors of their own in place of the system's.
    """
    if isinstance(error, SafetensorError):
        number = re.search(r"\(os error (\d+)\)", str(error))  # Rust's errno
        return os.strerror(int(number[1])) if number else None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return None
