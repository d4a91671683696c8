"""A urllib opener that keeps a downloader inside its bounds, whatever servers answer.

img2dataset downloads with `urllib.request.urlopen`, which follows redirects anywhere, reads bodies
of any size, and whose timeout starts anew with every packet. urllib lets a process install
another opener; this one checks every address it connects to (so a redirect or a changed DNS answer
cannot lead into the private net), and bounds a body's bytes and seconds.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

from etl.filters.urls import is_public


class PrivateAddressError(OSError):
    """A host resolves to a private, loopback or otherwise not public address."""


class BodyError(OSError):
    """A body is too large, or its answer too slow."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a download may do.

    `max_bytes` bounds a body, `deadline` the seconds of a whole answer, `allow_private` lets it
    connect to private and loopback addresses.
    """

    max_bytes: int
    deadline: float
    allow_private: bool


def opener(bounds: Bounds) -> urllib.request.OpenerDirector:
    """An opener for http and https only, to be given to `urllib.request.install_opener`.

    A proxy from the environment is used as it is: then it is the proxy that resolves and connects.
    """
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HttpHandler(bounds),
        _HttpsHandler(bounds),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


class _Connection(http.client.HTTPConnection):
    """Refuses private addresses before it connects, and looks again at whom it reached."""

    def __init__(self, host: str, *, bounds: Bounds, direct: bool, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(host, **kwargs)
        self._bounds = bounds
        self._checked = direct and not bounds.allow_private

    def connect(self) -> None:
        if self._checked:
            for *_, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
                require_public(str(address[0]), self.host)
        super().connect()
        if self._checked:  # the name may have been resolved anew
            require_public(str(self.sock.getpeername()[0]), self.host)

    def response_class(self, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:  # type: ignore[override]  # noqa: ANN401
        return _Response(*args, bounds=self._bounds, **kwargs)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Response(http.client.HTTPResponse):
    """Reads status, headers and body within one deadline, and a body of bounded size."""

    def __init__(self, sock: socket.socket, *args: Any, bounds: Bounds, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **kwargs)
        self._bounds = bounds
        end = time.monotonic() + bounds.deadline
        self.fp = io.BufferedReader(TimedReader(self.fp.detach(), sock, end))

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        limit = self._bounds.max_bytes
        announced = self.length
        if announced is not None and announced > limit:
            raise BodyError(f"body larger than {limit} bytes")
        # Without an amount a body that is shorter than announced is an error, so that is kept.
        body = super().read() if announced is not None else super().read(limit + 1)
        if len(body) > limit:
            raise BodyError(f"body larger than {limit} bytes")
        return body


class TimedReader(io.RawIOBase):
    """A socket's raw reader with a deadline over all reads together, not for each anew.

    Args:
        raw: reads the socket.
        sock: its timeout is the patience with each read.
        end: the deadline, as `time.monotonic` counts.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end: float) -> None:
        self._raw = raw
        self._sock = sock
        self._patience = sock.gettimeout()
        self._end = end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - the library's signature
        """Read once; raises BodyError past the deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise BodyError("answer timed out: its deadline is over")
        self._sock.settimeout(left if self._patience is None else min(left, self._patience))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the raw reader, too."""
        self._raw.close()
        super().close()


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = functools.partial(_Connection, bounds=self._bounds, direct=_is_direct(req))
        return self.do_open(connect, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = functools.partial(_TlsConnection, bounds=self._bounds, direct=_is_direct(req))
        return self.do_open(connect, req)


def _is_direct(request: urllib.request.Request) -> bool:
    """Whether no proxy stands between (urllib marks the two kinds of proxying in two ways)."""
    return not (request.has_proxy() or getattr(request, "_tunnel_host", None))


def require_public(address: str, host: str) -> None:
    """Raise PrivateAddressError unless what a host resolved to belongs to the public internet."""
    if not is_public(address):
        raise PrivateAddressError(f"private address {address} of {host}")
