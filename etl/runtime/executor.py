"""Ray actors that do a job's ranges, one after the other; whoever dies is replaced.

Ray Data would do that, too. It is left out since what it adds (blocks, streaming, shuffles) is not
used here, where media never travel, and costs a third of what starting a job takes; and since it
gives what a dead worker was at to no other, so that a job waits for a node that may never return.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

MAX_DEATHS = 4
"""Workers that may die of one item before the job is given up: it may be the item that kills."""

_GARBAGE = 10_000
"""Objects by which a worker's memory may grow before cycles of them are looked for."""

_PATIENCE = 5.0
"""Seconds that idle workers are kept while others are at their last items."""

_log = logging.getLogger("etl")

T = TypeVar("T")
R = TypeVar("R")


class CrewError(RuntimeError):
    """Workers die again and again of the same item."""


class _Worker:
    """Makes a tool when it is first asked to use it, and keeps it."""

    def __init__(self) -> None:
        self._tools: dict[str, Any] = {}

    def use(self, name: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        if name not in self._tools:
            self._tools[name] = make()
            # Ray and the tool are here to stay: looking through them for garbage again and again
            # took a twentieth of a download's time.
            gc.freeze()
            gc.set_threshold(_GARBAGE)
        return self._tools[name](item)


class Crew:
    """Some like workers, which start when there is something to do and end with the block.

    Args:
        size: the most that work at a time.
        cpus: what each takes of the cluster's CPUs.
        gpus: what each takes of its GPUs.
    """

    def __init__(self, size: int, *, cpus: float, gpus: float = 0) -> None:
        self._size = size
        self._kind = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._idle: list[Any] = []
        self._running: dict[
            Any, tuple[Any, Any, int]
        ] = {}  # by what will be told: who, what, tries

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in (*self._idle, *(worker for worker, _, _ in self._running.values())):
            ray.kill(worker)
        self._idle, self._running = [], {}

    def dismiss(self) -> None:
        """End the workers that are idle; others start when they are needed."""
        for worker in self._idle:
            ray.kill(worker)
        self._idle = []

    def each(
        self, name: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """What a tool makes of each item, in the order in which they end.

        Args:
            name: of the tool.
            make: makes the tool, once in each worker.
            items: what to use it on.

        Raises:
            CrewError: an item that no worker survived.
            Whatever the tool raises.
        """
        todo = collections.deque((item, 0) for item in items)
        while todo or self._running:
            while todo and len(self._running) < self._size:
                item, deaths = todo.popleft()
                worker = self._idle.pop() if self._idle else self._kind.remote()
                self._running[worker.use.remote(name, make, item)] = worker, item, deaths
            # Where there is no room for all, whoever is idle makes room for those who wait for it.
            told, _ = ray.wait(list(self._running), timeout=_PATIENCE if self._idle else None)
            if not told:
                self.dismiss()
                continue
            worker, item, deaths = self._running.pop(told[0])
            try:
                result = ray.get(told[0])
            except RayActorError as error:
                with contextlib.suppress(ValueError):  # it has ended
                    ray.kill(worker)
                _log.warning("a worker died (%s); what it was at is done again", _first_line(error))
                if deaths + 1 == MAX_DEATHS:
                    raise CrewError(f"{deaths + 1} workers died of the same range") from error
                todo.appendleft((item, deaths + 1))
                continue
            self._idle.append(worker)
            yield result


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
