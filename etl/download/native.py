"""The native backend: fetches and finishes media in one process, on threads.

A thread takes the next URL whose host may be asked, fetches it hop by hop, and hands the result to
`finish` (which decodes; Pillow and hashlib let other threads run meanwhile). Results come in the
order of the URLs. What is fetched ahead is bounded in rows and bytes, so memory is, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import SplitResult, urljoin

from etl.download.backoff import delay, retry_after
from etl.download.base import Fetched, FetchOptions
from etl.download.connections import Connections, read_body, split_url
from etl.download.errors import FetchError, classify
from etl.download.resolve import Resolver
from etl.download.robots import Robots, opted_out
from etl.download.safe_http import require_public
from etl.download.schedule import Schedule

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TOKEN = "mmloom"
_DECODERS = 2
"""Threads that decode at a time: more gain nothing in one process, but each may hold a picture."""

_AHEAD = 4  # URLs that are handed out before their turn, per thread
_MAX_HELD = 256 << 20
"""Bytes of results that wait for their turn, past which nothing further is begun."""

_GIVE_UP = 8
"""Failures to reach a host in a row, after which it is left alone for the rest of the batch."""

T = TypeVar("T")
Finish = Callable[[int, Fetched], T]
"""From the place of a URL in its batch and its result to whatever is wanted of it."""


@dataclass
class _Task:
    """One URL on its way: where it stands, and how often it was sent elsewhere or tried."""

    place: int
    url: SplitResult
    seen: list[str] = field(default_factory=list)
    attempt: int = 0

    @property
    def host(self) -> str:
        return self.url.hostname or ""


class Native:
    """The native backend; holds connections, DNS answers and robots.txt from batch to batch.

    Args:
        options: how to download.
        resolver: for tests; one by the system otherwise.
    """

    def __init__(self, options: FetchOptions, *, resolver: Resolver | None = None) -> None:
        self.options = options
        self.token = options.user_agent or _TOKEN
        bounds = options.bounds
        self.connections = Connections(
            resolver=resolver or Resolver(allow_private=bounds.allow_private),
            timeout=options.timeout,
            headers={
                "User-Agent": f"Mozilla/5.0 (compatible; {self.token})",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
        )
        self.robots = Robots(self.connections, token=self.token, deadline=bounds.deadline)

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """See `Backend.fetch`."""
        return list(self.stream(urls, lambda _, found: found))

    def stream(self, urls: Sequence[str], finish: Finish[T]) -> Iterator[T]:
        """See `Backend.stream`; `finish` is called on several threads."""
        yield from _Batch(self, urls, finish).results()

    def hop(self, url: SplitResult) -> bytes | str:
        """Ask once: a body, or where the server sends us.

        Raises:
            FetchError and whatever `classify` knows.
        """
        bounds = self.options.bounds
        if not bounds.allow_private:
            _require_public_literal(url.hostname or "")
        if self.options.robots:
            self.robots.require(url)
        until = time.monotonic() + bounds.deadline
        with self.connections.get(url, until=until) as response:
            target = response.headers.get("Location")
            if response.status in _REDIRECTS and target:
                return urljoin(url.geturl(), target)
            if not 200 <= response.status < 300:
                wait = retry_after(response.headers.get("Retry-After"))
                detail = f"HTTP {response.status} {response.reason}"
                raise FetchError(f"http_{response.status}", detail, wait=wait)
            if tag := opted_out(response.headers, self.token):
                raise FetchError("opted_out", f"X-Robots-Tag: {tag}")
            return read_body(response, bounds.max_bytes)


class _Batch(Generic[T]):
    """One call's URLs, threads and results."""

    def __init__(self, native: Native, urls: Sequence[str], finish: Finish[T]) -> None:
        self._native = native
        self._urls = urls
        self._finish = finish
        self._schedule: Schedule[_Task] = Schedule(native.options.per_host)
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._arrived = threading.Condition()
        self._results: dict[int, tuple[int, T]] = {}  # by place: bytes it may hold, and the result
        self._held = 0
        self._begun = 0
        self._failures: dict[str, int] = {}
        self._error: BaseException | None = None

    def results(self) -> Iterator[T]:
        """The results in order; stops the threads when it ends or is given up."""
        count = min(self._native.options.threads, len(self._urls))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        try:
            self._begin(0)
            for thread in threads:
                thread.start()
            for place in range(len(self._urls)):
                yield self._wait(place)
                self._begin(place + 1)
        finally:
            self._schedule.close()
            for thread in threads:
                if thread.ident:
                    thread.join()

    def _begin(self, turn: int) -> None:
        """Hand out URLs up to some way ahead of the one whose turn it is."""
        ahead = turn + _AHEAD * self._native.options.threads
        while self._begun < min(len(self._urls), ahead):
            if self._held > _MAX_HELD and self._begun > turn:
                return
            place, self._begun = self._begun, self._begun + 1
            try:
                task = _Task(place, split_url(self._urls[place]))
            except FetchError as error:
                self._put(place, Fetched(reason=error.reason, detail=error.detail))
                continue
            self._schedule.add(task.host, task)

    def _wait(self, place: int) -> T:
        with self._arrived:
            self._arrived.wait_for(lambda: self._error or place in self._results)
            if self._error:
                raise self._error
            size, result = self._results.pop(place)
            self._held -= size
            return result

    def _put(self, place: int, found: Fetched) -> None:
        if found.data is None:
            result = self._finish(place, found)
        else:
            with self._decoders:
                result = self._finish(place, found)
        size = len(found.data or b"")
        with self._arrived:
            self._held += size
            self._results[place] = size, result
            self._arrived.notify()

    def _work(self) -> None:
        try:
            while (task := self._schedule.take()) is not None:
                self._serve(task)
        except BaseException as error:  # a fault of ours: whoever waits for results must hear it
            with self._arrived:
                self._error = error
                self._arrived.notify()

    def _serve(self, task: _Task) -> None:
        host, hold = task.host, 0.0
        body = None
        try:
            if self._failures.get(host, 0) >= _GIVE_UP:
                raise FetchError("unreachable", f"{host}: given up after {_GIVE_UP} failures")
            found = self._native.hop(task.url)
            self._failures[host] = 0
            if isinstance(found, str):
                self._follow(task, found)
            else:
                body = found
        except Exception as error:  # the web raises anything; `classify` names it, or says what
            hold = self._failed(task, classify(error))
        finally:
            self._schedule.release(host, hold=hold)
        if body is not None:
            self._put(task.place, Fetched(data=body))

    def _follow(self, task: _Task, target: str) -> None:
        task.seen.append(task.url.geturl())
        if target in task.seen:
            raise FetchError("redirect_loop", f"sent in a circle to {target[:200]}")
        if len(task.seen) > MAX_REDIRECTS:
            raise FetchError("too_many_redirects", f"sent on more than {MAX_REDIRECTS} times")
        try:
            task.url = split_url(target)
        except FetchError as error:
            raise FetchError("bad_redirect", error.detail) from None
        self._schedule.add(task.host, task)

    def _failed(self, task: _Task, error: FetchError) -> float:
        """Try again later, or tell the reason; seconds for which the host is to be left alone."""
        if error.reason in ("timeout", "unreachable"):
            self._failures[task.host] = self._failures.get(task.host, 0) + 1
        wait = delay(error, task.attempt)
        if wait is None or task.attempt >= self._native.options.retries:
            detail = error.detail if not task.seen else f"{task.url.geturl()[:200]}: {error.detail}"
            self._put(task.place, Fetched(reason=error.reason, detail=detail))
            return 0.0
        task.attempt += 1
        self._schedule.add(task.host, task, seconds=wait)
        return wait if error.wait is not None else 0.0


def _require_public_literal(host: str) -> None:
    """Refuse a literal private address: behind a proxy nobody else would."""
    try:
        require_public(host, host)
    except ValueError:
        return  # a name
