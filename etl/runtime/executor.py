"""A pool of Ray actors that runs a function over items and replaces actors that die.

Ray Data would do that, too. It is not used here because its features (blocks, streaming, shuffles)
are not needed where media never leave the worker, and cost a third of a job's start-up time; and
because it never reassigns the item of a dead worker, so a job waits for a node that may not return.
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
"""Workers that may die on one item before the job fails: the item itself may be the cause."""

_GC_THRESHOLD = 10_000
"""Allocations between two garbage collections in a worker."""

_IDLE_SECONDS = 5.0
"""How long idle workers are kept while others process their last items."""

_log = logging.getLogger("etl")

T = TypeVar("T")
R = TypeVar("R")


class ActorPoolError(RuntimeError):
    """Workers keep dying on the same item."""


class _Worker:
    """A Ray actor that builds each function on its first call and reuses it."""

    def __init__(self) -> None:
        self._functions: dict[str, Any] = {}

    def call(self, name: str, build: Callable[[], Callable[[T], R]], item: T) -> R:
        if name not in self._functions:
            self._functions[name] = build()
            # Ray and the function live as long as the actor: collecting them again and again took
            # a twentieth of a download's time.
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
        return self._functions[name](item)


class ActorPool:
    """Identical Ray actors that are started on demand and killed when the `with` block ends.

    Args:
        size: the maximum number of actors.
        cpus: CPUs that each actor reserves.
        gpus: GPUs that each actor reserves.
    """

    def __init__(self, size: int, *, cpus: float, gpus: float = 0) -> None:
        self._size = size
        self._actor_class = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Any, int]] = {}  # result ref: actor, item, deaths

    def __enter__(self) -> ActorPool:
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

    def stop_idle(self) -> None:
        """Kill the idle actors; new ones start when they are needed."""
        for worker in self._idle:
            ray.kill(worker)
        self._idle = []

    def map_unordered(
        self, name: str, build: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the function's result for each item, in order of completion.

        Args:
            name: identifies the function within an actor.
            build: builds the function, once in each actor.
            items: its arguments.

        Raises:
            ActorPoolError: an item on which `MAX_DEATHS` workers died.
            Whatever the function raises.
        """
        todo = collections.deque((item, 0) for item in items)
        while todo or self._running:
            while todo and len(self._running) < self._size:
                item, deaths = todo.popleft()
                worker = self._idle.pop() if self._idle else self._actor_class.remote()
                self._running[worker.call.remote(name, build, item)] = worker, item, deaths
            # If the cluster cannot hold all actors, idle ones make room for those still pending.
            ready, _ = ray.wait(list(self._running), timeout=_IDLE_SECONDS if self._idle else None)
            if not ready:
                self.stop_idle()
                continue
            worker, item, deaths = self._running.pop(ready[0])
            try:
                result = ray.get(ready[0])
            except RayActorError as error:
                with contextlib.suppress(ValueError):  # it is dead already
                    ray.kill(worker)
                _log.warning("a worker died (%s); its item is retried", _first_line(error))
                if deaths + 1 == MAX_DEATHS:
                    raise ActorPoolError(f"{deaths + 1} workers died on the same item") from error
                todo.appendleft((item, deaths + 1))
                continue
            self._idle.append(worker)
            yield result


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
