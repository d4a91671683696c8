"""The native backend: downloads and finishes media in one process, on threads.

A thread takes the next URL whose host is free, sends one request at a time (redirects included),
and passes the result to `finish` (which decodes; Pillow and hashlib release the GIL). Results are
returned in the order of the URLs. Prefetching is bounded in rows and bytes, and so is memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import SplitResult

from etl.download.backoff import retry_after, retry_delay
from etl.download.base import Fetched, FetchOptions
from etl.download.errors import FetchError, classify
from etl.download.host_queue import HostQueue
from etl.download.resolve import Resolver
from etl.download.robots import Robots, opted_out
from etl.download.safe_http import HttpClient, read_body, redirect_target, split_url

MAX_REDIRECTS = 5
_TOKEN = "mmloom"
_DECODERS = 2
"""Threads that decode at a time: more are no faster in one process, but each may hold an image."""

_PREFETCH = 4  # URLs ahead of the consumer, per thread
_MAX_HELD = 256 << 20
"""Bytes of results waiting for the consumer above which no further URL is started."""

_MAX_FAILURES = 8
"""Consecutive failures to reach a host, after which the rest of the batch fails at once."""

T = TypeVar("T")
Finish = Callable[[int, Fetched], T]
"""Maps the index of a URL in its batch and its result to the caller's own result."""


@dataclass
class _Task:
    """One URL in progress: its index in the batch, its redirects so far, and its attempts."""

    index: int
    url: SplitResult
    visited: list[str] = field(default_factory=list)
    attempt: int = 0

    @property
    def host(self) -> str:
        return self.url.hostname or ""


class NativeBackend:
    """The native backend; keeps connections, DNS results and robots.txt from batch to batch.

    Args:
        options: how to download.
        resolver: for tests; the system's by default.
    """

    def __init__(self, options: FetchOptions, *, resolver: Resolver | None = None) -> None:
        self.options = options
        self.token = options.user_agent or _TOKEN
        limits = options.limits
        self.client = HttpClient(
            resolver=resolver or Resolver(allow_private=limits.allow_private),
            timeout=options.timeout,
            per_host=options.per_host,
            headers={
                "User-Agent": f"Mozilla/5.0 (compatible; {self.token})",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
        )
        self.robots = Robots(self.client, token=self.token, deadline=limits.deadline)

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """See `Backend.fetch`."""
        return list(self.stream(urls, lambda _, fetched: fetched))

    def stream(self, urls: Sequence[str], finish: Finish[T]) -> Iterator[T]:
        """See `Backend.stream`; `finish` is called on several threads."""
        yield from _Batch(self, urls, finish).results()

    def request(self, url: SplitResult) -> bytes | str:
        """Send one request; returns the body, or the target of a redirect.

        Raises:
            FetchError, or what `classify` handles.
        """
        limits = self.options.limits
        if self.options.robots:
            self.robots.require(url)
        until = time.monotonic() + limits.deadline
        with self.client.get(url, until=until) as response:
            if target := redirect_target(response, url):
                return target
            if not 200 <= response.status < 300:
                wait = retry_after(response.headers.get("Retry-After"))
                detail = f"HTTP {response.status} {response.reason}"
                raise FetchError(f"http_{response.status}", detail, wait=wait)
            if tag := opted_out(response.headers, self.token):
                raise FetchError("opted_out", f"X-Robots-Tag: {tag}")
            return read_body(response, limits.max_bytes)


class _Batch(Generic[T]):
    """The URLs, threads and results of one call."""

    def __init__(self, native: NativeBackend, urls: Sequence[str], finish: Finish[T]) -> None:
        self._native = native
        self._urls = urls
        self._finish = finish
        self._queue: HostQueue[_Task] = HostQueue(native.options.per_host)
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._arrived = threading.Condition()
        self._results: dict[int, tuple[int, T]] = {}  # by index: bytes that it may hold, and itself
        self._held = 0
        self._started = 0
        self._failures: dict[str, int] = {}
        self._error: BaseException | None = None

    def results(self) -> Iterator[T]:
        """Yield the results in order; stops the threads when it ends or is closed."""
        count = min(self._native.options.threads, len(self._urls))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        try:
            self._start_until(0)
            for thread in threads:
                thread.start()
            for index in range(len(self._urls)):
                yield self._wait(index)
                self._start_until(index + 1)
        finally:
            self._queue.close()
            for thread in threads:
                if thread.ident:
                    thread.join()

    def _start_until(self, index: int) -> None:
        """Queue URLs up to some way ahead of the one that is consumed next."""
        ahead = index + _PREFETCH * self._native.options.threads
        while self._started < min(len(self._urls), ahead):
            if self._held > _MAX_HELD and self._started > index:
                return
            number, self._started = self._started, self._started + 1
            try:
                task = _Task(number, split_url(self._urls[number]))
            except FetchError as error:
                self._put(number, Fetched(reason=error.reason, detail=error.detail))
                continue
            self._queue.add(task.host, task)

    def _wait(self, index: int) -> T:
        with self._arrived:
            self._arrived.wait_for(lambda: self._error or index in self._results)
            if self._error:
                raise self._error
            size, result = self._results.pop(index)
            self._held -= size
            return result

    def _put(self, index: int, fetched: Fetched) -> None:
        if fetched.data is None:
            result = self._finish(index, fetched)
        else:
            with self._decoders:
                result = self._finish(index, fetched)
        size = len(fetched.data or b"")
        with self._arrived:
            self._held += size
            self._results[index] = size, result
            self._arrived.notify()

    def _work(self) -> None:
        try:
            while (task := self._queue.take()) is not None:
                self._process(task)
        except BaseException as error:  # a bug of ours: raise it in the consumer's thread
            with self._arrived:
                self._error = error
                self._arrived.notify()

    def _process(self, task: _Task) -> None:
        host, hold = task.host, 0.0
        body = None
        try:
            if self._failures.get(host, 0) >= _MAX_FAILURES:
                raise FetchError("unreachable", f"{host}: given up after {_MAX_FAILURES} failures")
            found = self._native.request(task.url)
            self._failures[host] = 0
            if isinstance(found, str):
                self._redirect(task, found)
            else:
                body = found
        except Exception as error:  # servers cause any exception; `classify` names the reason
            hold = self._fail(task, classify(error))
        finally:
            self._queue.release(host, hold=hold)
        if body is not None:
            self._put(task.index, Fetched(data=body))

    def _redirect(self, task: _Task, target: str) -> None:
        task.visited.append(task.url.geturl())
        if target in task.visited:
            raise FetchError("redirect_loop", f"redirected in a loop to {target[:200]}")
        if len(task.visited) > MAX_REDIRECTS:
            raise FetchError("too_many_redirects", f"redirected more than {MAX_REDIRECTS} times")
        try:
            task.url = split_url(target)
        except FetchError as error:
            raise FetchError("bad_redirect", error.detail) from None
        self._queue.add(task.host, task)

    def _fail(self, task: _Task, error: FetchError) -> float:
        """Queue a retry, or store the failure; returns the seconds to leave the host alone."""
        if error.reason in ("timeout", "unreachable"):
            self._failures[task.host] = self._failures.get(task.host, 0) + 1
        wait = retry_delay(error, task.attempt)
        if wait is None or task.attempt >= self._native.options.retries:
            redirected = f"{task.url.geturl()[:200]}: " if task.visited else ""
            fetched = Fetched(reason=error.reason, detail=f"{redirected}{error.detail}")
            self._put(task.index, fetched)
            return 0.0
        task.attempt += 1
        self._queue.add(task.host, task, seconds=wait)
        return wait if error.wait is not None else 0.0
