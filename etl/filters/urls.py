"""Filters on URLs: invalid ones, and addresses outside the public internet."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa

from etl.filters.base import FilterResult
from etl.storage.lineage import url_matcher, urls_of

EMBEDDED = "input:"
"""The scheme of the location of a medium in the input's own files (`etl.media.embedded`)."""


def check_urls(table: pa.Table, *, allow_private: bool) -> FilterResult:
    """Drop rows without a valid http(s) URL, and literal private addresses.

    A URL may hold blanks, as browsers let it, but not in the name of its host.

    Host names are not resolved here: the downloader checks the addresses that they resolve to when
    it connects, at every redirect (`etl.download.safe_http`).

    Args:
        table: needs `url` (string; null if there is none).
        allow_private: keep private and loopback addresses.
    """
    return FilterResult(reasons=[_reason(url, allow_private) for url in table["url"].to_pylist()])


def _reason(url: str | None, allow_private: bool) -> str | None:
    if not url:
        return "no_url"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # both raise ValueError for an invalid URL
    except ValueError:
        return "bad_url"
    if (
        parts.scheme.lower() not in ("http", "https")
        or not host
        or any(map(str.isspace, parts.netloc))
    ):
        return "bad_url"
    if not allow_private and (host == "localhost" or not _literal_is_public(host)):
        return "private_address"
    return None


def excluded_urls(table: pa.Table, *, patterns: Sequence[str]) -> FilterResult:
    """Drop rows whose lineage has a URL, file or page that matches one of the patterns.

    Args:
        table: needs `lineage`, a JSON object per row.
        patterns: see `etl.storage.lineage.url_matcher`.
    """
    matches = url_matcher(patterns)
    lineage = map(json.loads, table["lineage"].to_pylist())
    return FilterResult(
        reasons=["excluded_url" if any(map(matches, urls_of(one))) else None for one in lineage]
    )


def _literal_is_public(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:
        return True  # a name; its addresses are checked on connection


def is_literal(host: str) -> bool:
    """Whether a URL's host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    Raises:
        ValueError: it is not an IP address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])  # without an IPv6 zone
    mapped = getattr(found, "ipv4_mapped", None)
    found = mapped or found
    return found.is_global and not found.is_multicast


def display_url(url: str) -> str:
    """A URL as reports show it: a data URL without its data, a place in the input as such."""
    return url.partition(",")[0] if url.startswith("data:") else url.removeprefix(EMBEDDED)
