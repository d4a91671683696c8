"""The interface of download backends.

A `Backend` takes a batch of URLs and returns a result for every one, in order. It runs inside one
Ray actor, with whatever threads and connections it needs. `etl.download.backends` selects one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from etl.filters.base import FilterResult
from etl.filters.urls import is_literal

BackendName = Literal["native", "img2dataset"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """Limits of a download.

    `max_bytes` limits a body, `deadline` the seconds of a whole response; `allow_private` allows
    connections to private and loopback addresses.
    """

    max_bytes: int
    deadline: float
    allow_private: bool


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to download: in seconds and bytes; every backend enforces `limits`.

    `per_host` is the maximum of connections to one host, `robots` whether robots.txt is honoured;
    img2dataset supports neither.
    """

    threads: int
    timeout: float
    retries: int
    user_agent: str | None
    limits: DownloadLimits
    per_host: int = 8
    robots: bool = True


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The bytes of one URL, or the drop reason (and the error message) if it failed."""

    data: bytes | None = field(default=None, repr=False)
    reason: str | None = None
    detail: str | None = None


class Backend(Protocol):
    """Downloads batches of URLs."""

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """One result for every URL, in order, in bounded time; never raises for a bad URL."""

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """Yield `finish(index, fetched)` for each URL of the batch, in order.

        `finish` may be called on several threads, in any order, and ahead of the consumer.
        """


_MIN_HOSTS = 20
_FAILING_SHARE = 0.9


def dns_outage(urls: Sequence[str | None], drops: Sequence[Mapping[str, Any]]) -> str | None:
    """An error message if DNS as a whole fails, rather than some names; None if it does not.

    Args:
        urls: all URLs of a unit.
        drops: the failed ones, rows with `url` and `reason`.
    """
    reasons = ("dns_failure", "dns_temporary")
    failed = {_named_host(drop["url"]) for drop in drops if drop["reason"] in reasons}
    if len(failed) < _FAILING_SHARE * _MIN_HOSTS:
        return None  # the usual case; no need to count the hosts
    hosts = {host for url in urls if (host := _named_host(url))}
    failed &= hosts
    if len(hosts) < _MIN_HOSTS or len(failed) < _FAILING_SHARE * len(hosts):
        return None
    return f"DNS is failing: {len(failed)} of {len(hosts)} hosts' names could not be resolved"


def _named_host(url: str | None) -> str | None:
    """The host of a URL if it is a name; None for literal addresses and URLs without a host."""
    try:
        host = urlsplit(url or "").hostname
    except ValueError:
        return None
    return host if host and not is_literal(host) else None


def fetch(table: pa.Table, *, backend: Backend) -> FilterResult:
    """Download a batch, as a filter function.

    Args:
        table: needs `url` (string).
        backend: the backend to use.

    Returns:
        New column `data` (large_binary).
    """
    results = backend.fetch(table["url"].to_pylist())
    return FilterResult(
        reasons=[one.reason for one in results],
        details=[one.detail for one in results],
        columns={"data": pa.array([one.data for one in results], pa.large_binary())},
    )
