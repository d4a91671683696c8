"""Where a job's workers run: processes on this machine, or the actors of a Ray cluster.

Both are `Workers` (`worker_pool`): `local_workers`, the default, and `ray_workers`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from etl.runtime.local_workers import LocalWorkers, preload
from etl.runtime.worker_pool import WorkerPool, Workers

ExecutorName = Literal["auto", "local", "ray"]
"""`auto` is `ray` where a cluster is given (`RAY_ADDRESS`, or an open connection), else `local`."""


class Executor:
    """Opens pools of workers.

    Args:
        workers: where they run.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    @property
    def cpus(self) -> int:
        """CPUs of all machines."""
        return self._workers.cpus

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return self._workers.gpus

    @contextlib.contextmanager
    def pool(self, size: int, *, cpus: float, gpus: float = 0) -> Iterator[WorkerPool]:
        """A pool of at most `size` workers that need so many CPUs and GPUs each."""
        pool = WorkerPool(self._workers, size, cpus=cpus, gpus=gpus)
        try:
            yield pool
        finally:
            pool.close()


def prepare(name: ExecutorName) -> None:
    """Start in the background what an executor needs time for; it may never be opened."""
    if not _is_ray(name):
        preload()


@contextlib.contextmanager
def open_executor(name: ExecutorName, *, log: Path | None = None) -> Iterator[Executor]:
    """An executor for the duration of the block.

    Args:
        name: which one.
        log: the file to which local workers append what they and their libraries print (Ray has
            log files of its own); None for this process's stderr.
    """
    if _is_ray(name):
        from etl.runtime.ray_workers import connect  # noqa: PLC0415 - importing Ray takes a second

        with connect() as workers:
            yield Executor(workers)
    else:
        yield Executor(LocalWorkers(log))


def _is_ray(name: ExecutorName) -> bool:
    if name != "auto":
        return name == "ray"
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
