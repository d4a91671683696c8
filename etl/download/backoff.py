"""When to retry: backoff by error class, and the server's Retry-After."""

from __future__ import annotations

import email.utils
import random
import time

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
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
