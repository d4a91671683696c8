"""A pool of workers that runs a function over items, wherever the workers are.

A worker builds its function once, and an item whose worker dies is given to another.
"""

from __future__ import annotations

import collections
import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from etl.cli import UserError

MAX_DEATHS = 4
"""Workers that may die on one item before the job fails: the item itself may be the cause."""

_GC_THRESHOLD = 10_000
"""Allocations between two garbage collections in a worker."""

_IDLE_SECONDS = 5.0
"""How long idle workers are kept while others process their last items."""

_log = logging.getLogger("etl")

T = TypeVar("T")
R = TypeVar("R")


class WorkerDiedError(Exception):
    """A worker ended before it returned its result; the message says how."""


class ExecutorError(UserError):
    """Workers keep dying on the same item, whatever is done in place of it."""


class Workers(Protocol):
    """Where workers run.

    A worker and a ticket (of a call that was submitted) are whatever an implementation uses.
    `cpus` and `gpus` are the totals over all machines.
    """

    cpus: int
    gpus: int

    def start(self, *, cpus: float, gpus: float) -> Any:  # noqa: ANN401
        """Start a worker that needs so many CPUs and GPUs; does not wait until it runs."""

    def submit(self, worker: Any, call: Call) -> Any:  # noqa: ANN401
        """Have an idle worker make a call; returns its ticket."""

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Any | None:  # noqa: ANN401
        """Wait for one of the tickets to have a result; returns it, or None after `timeout` s."""

    def result(self, ticket: Any) -> Any:  # noqa: ANN401
        """Return what the call returned, or raise what it raised, or WorkerDiedError."""

    def kill(self, worker: Any) -> None:  # noqa: ANN401
        """End a worker at once; it may be dead already."""


Call = tuple[str, Callable[[], Callable[[Any], Any]], Any]
"""A function's name, what builds it in a worker, and the item that it is called with."""


class Functions:
    """The functions of a worker, each of which is built on its first call."""

    def __init__(self) -> None:
        self._built: dict[str, Callable[[Any], Any]] = {}
        spare_pandas()

    def call(self, call: Call) -> Any:  # noqa: ANN401
        """Return the function's result."""
        name, build, item = call
        if name not in self._built:
            self._built[name] = build()
            # What is alive now lives as long as the worker: collecting it again and again took a
            # twentieth of a download's time.
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
        return self._built[name](item)


class _NoPandas:
    """A finder on `sys.meta_path` that finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, which it does at the first `pa.array` of a process.

    It looks for pandas once, to know its series; that costs each process 0.4 s, and nothing in a
    job has any. A later `import pandas` works as ever.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_NoPandas)


class WorkerPool:
    """Identical workers that are started on demand.

    Args:
        workers: where they run.
        size: their maximum number.
        cpus, gpus: what each of them needs.
    """

    def __init__(self, workers: Workers, size: int, *, cpus: float, gpus: float) -> None:
        self._workers = workers
        self._size = size
        self._needs = {"cpus": cpus, "gpus": gpus}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Any, int]] = {}  # ticket: worker, item, deaths

    def close(self) -> None:
        """Kill all workers."""
        self.stop_idle()
        for worker, _, _ in self._running.values():
            self._workers.kill(worker)
        self._running = {}

    def stop_idle(self) -> None:
        """Kill the idle workers; new ones start when they are needed."""
        for worker in self._idle:
            self._workers.kill(worker)
        self._idle = []

    def map_unordered(
        self,
        name: str,
        build: Callable[[], Callable[[T], R]],
        items: Sequence[T],
        after_death: Callable[[T], T] | None = None,
    ) -> Iterator[R]:
        """Yield the function's result for each item, in order of completion.

        Args:
            name: identifies the function within a worker.
            build: builds the function, once in each worker; pickled.
            items: its arguments; pickled.
            after_death: returns what is done in place of an item whose worker has died, such as the
                same with more caution; None repeats it.

        Raises:
            ExecutorError: an item on which `MAX_DEATHS` workers died.
            Whatever the function raises.
        """
        todo = collections.deque((item, 0) for item in items)
        while todo or self._running:
            while todo and len(self._running) < self._size:
                item, deaths = todo.popleft()
                worker = self._idle.pop() if self._idle else self._workers.start(**self._needs)
                ticket = self._workers.submit(worker, (name, build, item))
                self._running[ticket] = worker, item, deaths
            # If the machines cannot hold all workers, idle ones make room for those still pending.
            timeout = _IDLE_SECONDS if self._idle else None
            ticket = self._workers.wait(list(self._running), timeout)
            if ticket is None:
                self.stop_idle()
                continue
            worker, item, deaths = self._running.pop(ticket)
            try:
                result = self._workers.result(ticket)
            except WorkerDiedError as error:
                self._workers.kill(worker)
                _log.warning("a worker died (%s); its item is retried", error)
                if deaths + 1 == MAX_DEATHS:
                    raise ExecutorError(
                        f"{deaths + 1} workers died on the same item, the last by {error};"
                        " repeat the command to resume"
                    ) from error
                todo.appendleft((after_death(item) if after_death else item, deaths + 1))
                continue
            except BaseException:
                self._workers.kill(worker)
                raise
            self._idle.append(worker)
            yield result
