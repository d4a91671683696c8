"""Checkpoints written beside training: a step waits for the copy, and for nothing else.

    copy     all ranks, between two steps (`pipeline.checkpoint.snapshot`)
    write    a thread of each rank
    publish  rank 0's thread, once all have written: manifest, rename, `latest`, and the old ones go

Ranks tell each other how far they are with what they exchange before every step, so nobody waits
for files of others and a rank that cannot write is heard of by all.
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
    """How many ranks are at it still, and how many could not do it."""

    busy: int = 0
    failed: int = 0


class Writer:
    """This rank's thread; one piece of work at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do something beside training."""
        self._work = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until it is done or has failed."""
        if self._work is not None:
            self._work.exception()

    @property
    def standing(self) -> SaveStatus:
        """What the other ranks are told; what is no disk's fault is raised."""
        if self._work is None:
            return SaveStatus()
        if not self._work.done():
            return SaveStatus(busy=1)
        return SaveStatus(failed=int(self.trouble is not None))

    @property
    def trouble(self) -> str | None:
        """Why the work that is done could not be; None if it could.

        Raises:
            Whatever the work has raised that is no disk's fault.
        """
        error = self._work.exception() if self._work is not None else None
        if error is None:
            return None
        said = disk_trouble(error)
        if said is None:
            raise error
        return said


def disk_trouble(error: BaseException) -> str | None:
    """Return what the system said when something could not be written; None for other errors.

    PyTorch and safetensors raise errors of their own in place of the system's.
    """
    if isinstance(error, SafetensorError):
        number = re.search(r"\(os error (\d+)\)", str(error))  # Rust's, which is the system's
        return os.strerror(int(number[1])) if number else None
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found.strerror or str(found)
        found = found.__cause__ or found.__context__
    return None
