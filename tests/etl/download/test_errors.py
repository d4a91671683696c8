"""Drop reasons of failed downloads, and retry delays."""

import email.utils
import http.client
import socket
import ssl
import time

import pytest

from etl.download.backoff import MAX_WAIT, retry_after, retry_delay
from etl.download.errors import (
    TRANSIENT,
    BodyError,
    FetchError,
    PrivateAddressError,
    classify,
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), "timeout"),
        (ConnectionRefusedError(111, "refused"), "unreachable"),
        (http.client.RemoteDisconnected("closed"), "unreachable"),
        (http.client.IncompleteRead(b"", 5), "incomplete_body"),
        (http.client.BadStatusLine("x"), "bad_answer"),
        (http.client.InvalidURL("x"), "bad_url"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "dns_failure"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "dns_temporary"),
        (ssl.SSLCertVerificationError("expired"), "tls_failure"),
        (ssl.SSLError("handshake"), "tls_failure"),
        (PrivateAddressError("private address"), "private_address"),
        (BodyError("body larger than 5 bytes"), "body_too_large"),
        (TimeoutError("response timed out"), "timeout"),
        (FetchError("http_404", "gone"), "http_404"),
        (RuntimeError("nobody has seen this"), "download_failed"),
    ],
)
def test_errors_have_classes(error: Exception, reason: str) -> None:
    assert classify(error).reason == reason


def test_transient_and_permanent_reasons() -> None:
    assert {"timeout", "http_429", "http_503", "unreachable", "dns_temporary"} <= TRANSIENT
    assert not TRANSIENT & {"http_404", "http_403", "opted_out", "wrong_type", "private_address"}
    assert not TRANSIENT & {"dns_failure", "robots_disallowed", "body_too_large"}


def test_backoff_doubles_and_is_bounded() -> None:
    error = FetchError("timeout", "")
    waits = [retry_delay(error, attempt) for attempt in range(10)]
    assert all(2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits[:4]))
    assert max(waits) <= MAX_WAIT
    assert retry_delay(FetchError("http_404", ""), 0) is None


def test_retry_after_takes_precedence() -> None:
    assert retry_delay(FetchError("http_503", "", wait=7.0), 3) == 7.0
    assert retry_delay(FetchError("http_503", "", wait=MAX_WAIT + 1), 0) is None


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("120") == 120
    assert retry_after(None) is None
    assert retry_after("soon") is None
    date = email.utils.formatdate(time.time() + 50, usegmt=True)
    assert 40 < retry_after(date) <= 50
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
