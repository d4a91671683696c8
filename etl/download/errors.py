"""Drop reasons of failed downloads: one for each kind of failure, and which are transient.

`drops.parquet` contains these reasons; they are the same for every backend.
"""

from __future__ import annotations

import http.client
import socket
import ssl

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may change on another attempt (RFC 9110, section 15; RFC 6585, section 4)."""

TRANSIENT = frozenset(
    {
        "dns_temporary",
        "incomplete_body",
        "lost_by_downloader",
        "robots_unavailable",
        "timeout",
        "unreachable",
        *(f"http_{status}" for status in TRANSIENT_STATUS),
    }
)
"""Reasons that are worth another attempt later: `--retry-failed` downloads these rows again."""


class FetchError(Exception):
    """A download failed.

    Args:
        reason: its class, such as `http_404` or `timeout`.
        detail: an error message for people.
        wait: the seconds of the server's Retry-After.
    """

    def __init__(self, reason: str, detail: str, *, wait: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.wait = wait

    @property
    def transient(self) -> bool:
        """Whether another attempt may succeed."""
        return self.reason in TRANSIENT


class PrivateAddressError(FetchError):
    """A host resolves to a private, loopback or otherwise not public address."""

    def __init__(self, detail: str) -> None:
        super().__init__("private_address", detail)


class BodyError(FetchError):
    """A body is too large."""

    def __init__(self, detail: str) -> None:
        super().__init__("body_too_large", detail)


def classify(error: Exception) -> FetchError:
    """The failure that an exception from the network stack stands for."""
    if isinstance(error, FetchError):
        return error
    return FetchError(_reason(error), f"{type(error).__name__}: {error}")


_CLASSES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((ssl.SSLCertVerificationError,), "tls_failure"),
    ((TimeoutError,), "timeout"),
    ((http.client.IncompleteRead, ssl.SSLEOFError), "incomplete_body"),
    ((ssl.SSLError,), "tls_failure"),
    # RemoteDisconnected is a ConnectionResetError, too.
    ((OSError,), "unreachable"),
    ((http.client.InvalidURL, UnicodeError), "bad_url"),
    ((http.client.HTTPException,), "bad_answer"),
)
"""Exceptions and their reasons; the first match counts, so subclasses come first."""


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        temporary = error.errno in (socket.EAI_AGAIN, socket.EAI_SYSTEM)
        return "dns_temporary" if temporary else "dns_failure"
    for kinds, reason in _CLASSES:
        if isinstance(error, kinds):
            return reason
    return "download_failed"
