"""When to retry: backoff by error class, and the server's Retry-After."""

from __future__ import annotations

import random

import urllib3

from etl.download.errors import FetchError

MAX_WAIT = 30.0
"""Seconds: a longer Retry-After is not awaited, but left to `--retry-failed`."""

_BASE_SECONDS = {"http_429": 2.0, "http_503": 2.0, "timeout": 1.0, "dns_temporary": 1.0}
_OTHER_SECONDS = 0.5


def retry_delay(error: FetchError, attempt: int) -> float | None:
    """Seconds to wait before another attempt, or None if there should be none.

    Doubles with each attempt (0 is the first), plus a random half of it at most, so that rows that
    failed together are not retried together. Retry-After takes precedence.
    """
    if not error.transient:
        return None
    if error.wait is not None:
        return error.wait if error.wait <= MAX_WAIT else None
    wait = _BASE_SECONDS.get(error.reason, _OTHER_SECONDS) * 2**attempt
    return min(MAX_WAIT, wait * (1 + random.random() / 2))


def retry_after(value: str | None) -> float | None:
    """The seconds in a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3)."""
    try:
        return None if value is None else urllib3.Retry().parse_retry_after(value)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None
