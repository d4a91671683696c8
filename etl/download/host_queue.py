"""A task queue with a limit per host: first come, first served.

Waiting blocks no thread: a task that is to be retried later, or whose host is busy or asked to be
left alone, stays in the queue while the threads serve other hosts.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Host(Generic[T]):
    waiting: list[tuple[float, int, T]] = field(default_factory=list)  # a heap: time, order, task
    running: int = 0
    until: float = 0.0  # no task starts before
    listed: float | None = None  # the time of its current entry in the heap of hosts


class HostQueue(Generic[T]):
    """Tasks of many hosts for many threads.

    Args:
        per_host: maximum of running tasks per host.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._changed = threading.Condition()
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: list[tuple[float, int, str]] = []  # a heap: time, order, host
        self._order = itertools.count()
        self._closed = False

    def add(self, host: str, task: T, *, seconds: float = 0.0) -> None:
        """Add a task, to be started after some seconds at the earliest."""
        with self._changed:
            found = self._hosts.setdefault(host, _Host())
            heapq.heappush(found.waiting, (time.monotonic() + seconds, next(self._order), task))
            self._list(host, found)

    def take(self) -> T | None:
        """Wait for a task and take it; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                wait = self._until_next()
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, host = heapq.heappop(self._ready)
                found = self._hosts[host]
                found.listed = None
                found.running += 1
                _, _, task = heapq.heappop(found.waiting)
                self._list(host, found)
                return task
        return None

    def release(self, host: str, *, hold: float = 0.0) -> None:
        """Declare a taken task of a host finished; start none of its tasks for `hold` seconds."""
        with self._changed:
            found = self._hosts[host]
            found.running -= 1
            if hold:
                found.until = max(found.until, time.monotonic() + hold)
                found.listed = None
            self._list(host, found)

    def close(self) -> None:
        """Wake all threads that wait in `take`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _list(self, host: str, found: _Host[T]) -> None:
        if not found.waiting or found.running >= self._per_host:
            found.listed = None
            return
        when = max(found.until, found.waiting[0][0])
        if found.listed is None or when < found.listed:
            found.listed = when
            heapq.heappush(self._ready, (when, next(self._order), host))
            self._changed.notify()

    def _until_next(self) -> float | None:
        """Seconds until a host may be served; removes outdated entries."""
        while self._ready:
            when, _, host = self._ready[0]
            if self._hosts[host].listed == when:
                return when - time.monotonic()
            heapq.heappop(self._ready)
        return None
