"""The seam that download backends fill, and what they all answer.

A `Backend` takes a batch of URLs and answers for every one of them, in order. What it is built on
(threads, processes, connections) is its own business; it runs inside one Ray actor.
`etl.download.backends` makes one by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from etl.download.safe_http import Bounds
from etl.filters.base import Verdict
from etl.filters.urls import is_literal

BackendName = Literal["native", "img2dataset"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to download: units are seconds and bytes; `bounds` hold whatever the backend.

    `per_host` is the most connections to one host at a time, `robots` whether robots.txt is asked
    for; img2dataset knows neither.
    """

    threads: int
    timeout: float
    retries: int
    user_agent: str | None
    bounds: Bounds
    per_host: int = 8
    robots: bool = True


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The bytes of one URL, or the reason (and the error's text) why there are none."""

    data: bytes | None = field(default=None, repr=False)
    reason: str | None = None
    detail: str | None = None


class Backend(Protocol):
    """Downloads batches of URLs."""

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """One result for every URL, in order, in bounded time; never raises for a bad URL."""

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """What `finish` makes of each URL's place in the batch and result, in order.

        `finish` may be called on several threads, in any order, and ahead of what is taken.
        """


_MIN_HOSTS = 20
_FAILING_SHARE = 0.9


def dns_trouble(urls: Sequence[str | None], drops: Sequence[Mapping[str, Any]]) -> str | None:
    """What to stop for if DNS itself fails, rather than this or that name; None if it does not.

    Args:
        urls: all that were asked for.
        drops: rows with `url` and `reason` of those that came to nothing.
    """
    reasons = ("dns_failure", "dns_temporary")
    failed = {_named_host(drop["url"]) for drop in drops if drop["reason"] in reasons}
    if len(failed) < _FAILING_SHARE * _MIN_HOSTS:
        return None  # as nearly always; the hosts need not be counted
    hosts = {host for url in urls if (host := _named_host(url))}
    failed &= hosts
    if len(hosts) < _MIN_HOSTS or len(failed) < _FAILING_SHARE * len(hosts):
        return None
    return f"DNS is failing: {len(failed)} of {len(hosts)} hosts' names could not be resolved"


def _named_host(url: str | None) -> str | None:
    """The host of a URL if it is a name; None for literal addresses and whatever has no host."""
    try:
        host = urlsplit(url or "").hostname
    except ValueError:
        return None
    return host if host and not is_literal(host) else None


def fetch(table: pa.Table, *, backend: Backend) -> Verdict:
    """Download a batch as a step.

    Args:
        table: needs `url` (string).
        backend: what downloads.

    Returns:
        New column `data` (large_binary).
    """
    found = backend.fetch(table["url"].to_pylist())
    return Verdict(
        reasons=[one.reason for one in found],
        details=[one.detail for one in found],
        columns={"data": pa.array([one.data for one in found], pa.large_binary())},
    )
