"""Why a fetch came to nothing: one reason for each kind of failure, and which of them may pass.

Reasons are what stands in `drops.parquet`; they are the same for every backend.
"""

from __future__ import annotations

import http.client
import socket
import ssl

from etl.download.safe_http import BodyError, PrivateAddressError

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that another time may be other ones (RFC 9110, section 15; RFC 6585, section 4)."""

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
"""Reasons that are worth another try later: `--retry-failed` asks for these rows again."""


class FetchError(Exception):
    """A fetch that came to nothing.

    Args:
        reason: its class, such as `http_404` or `timeout`.
        detail: what happened, for people.
        wait: seconds after which the server asks to come back (Retry-After).
    """

    def __init__(self, reason: str, detail: str, *, wait: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.wait = wait

    @property
    def transient(self) -> bool:
        """Whether another try may end otherwise."""
        return self.reason in TRANSIENT


def classify(error: Exception) -> FetchError:
    """The failure that an exception from the network's depths means."""
    if isinstance(error, FetchError):
        return error
    return FetchError(_reason(error), f"{type(error).__name__}: {error}")


_BODY_TOO_LARGE = "larger than"

_CLASSES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((PrivateAddressError,), "private_address"),
    ((ssl.SSLCertVerificationError,), "tls_failure"),
    ((TimeoutError,), "timeout"),
    ((http.client.IncompleteRead, ssl.SSLEOFError), "incomplete_body"),
    ((ssl.SSLError,), "tls_failure"),
    # RemoteDisconnected is a ConnectionResetError, too.
    ((OSError,), "unreachable"),
    ((http.client.InvalidURL, UnicodeError), "bad_url"),
    ((http.client.HTTPException,), "bad_answer"),
)
"""Exceptions and what they mean; the first that fits is right, so subclasses come first."""


def _reason(error: Exception) -> str:
    if isinstance(error, BodyError):
        return "body_too_large" if _BODY_TOO_LARGE in str(error) else "timeout"
    if isinstance(error, socket.gaierror):
        temporary = error.errno in (socket.EAI_AGAIN, socket.EAI_SYSTEM)
        return "dns_temporary" if temporary else "dns_failure"
    for kinds, reason in _CLASSES:
        if isinstance(error, kinds):
            return reason
    return "download_failed"
