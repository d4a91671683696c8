"""Safe HTTP: a urllib opener that enforces size, time and address limits on any downloader.

img2dataset downloads with `urllib.request.urlopen`, which follows redirects anywhere, reads bodies
of any size, and whose timeout restarts with every packet. urllib allows a process to install
another opener; this one checks every address that it connects to (so no redirect or changed DNS
result can reach the private network), and bounds a body's bytes and seconds.
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
    """A body is too large, or its response too slow."""


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """Limits of a download.

    `max_bytes` limits a body, `deadline` the seconds of a whole response; `allow_private` allows
    connections to private and loopback addresses.
    """

    max_bytes: int
    deadline: float
    allow_private: bool


def opener(limits: DownloadLimits) -> urllib.request.OpenerDirector:
    """An opener for http and https only, for `urllib.request.install_opener`.

    A proxy from the environment is used unchecked: it then resolves and connects by itself.
    """
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HttpHandler(limits),
        _HttpsHandler(limits),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


class _Connection(http.client.HTTPConnection):
    """Refuses private addresses before it connects, and checks the peer again afterwards."""

    def __init__(self, host: str, *, limits: DownloadLimits, direct: bool, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(host, **kwargs)
        self._limits = limits
        self._checked = direct and not limits.allow_private

    def connect(self) -> None:
        if self._checked:
            for *_, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
                require_public(str(address[0]), self.host)
        super().connect()
        if self._checked:  # the name may have been resolved a second time
            require_public(str(self.sock.getpeername()[0]), self.host)

    def response_class(self, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:  # type: ignore[override]  # noqa: ANN401
        return _Response(*args, limits=self._limits, **kwargs)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Response(http.client.HTTPResponse):
    """Reads status, headers and body before one deadline, and a body of limited size."""

    def __init__(
        self,
        sock: socket.socket,
        *args: Any,  # noqa: ANN401
        limits: DownloadLimits,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(sock, *args, **kwargs)
        self._limits = limits
        end = time.monotonic() + limits.deadline
        self.fp = io.BufferedReader(TimedReader(self.fp.detach(), sock, end))

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        limit = self._limits.max_bytes
        announced = self.length
        if announced is not None and announced > limit:
            raise BodyError(f"body larger than {limit} bytes")
        # Without an amount, http.client raises if the body is shorter than its Content-Length.
        body = super().read() if announced is not None else super().read(limit + 1)
        if len(body) > limit:
            raise BodyError(f"body larger than {limit} bytes")
        return body


class TimedReader(io.RawIOBase):
    """A socket's raw reader with one deadline for all reads together.

    Args:
        raw: reads the socket.
        sock: its timeout applies to each read.
        end: the deadline (`time.monotonic`).
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end: float) -> None:
        self._raw = raw
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._end = end

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - the library's signature
        """Read once; raises BodyError after the deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise BodyError("response timed out: its deadline has passed")
        self._sock.settimeout(left if self._timeout is None else min(left, self._timeout))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the raw reader, too."""
        self._raw.close()
        super().close()


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, limits: DownloadLimits) -> None:
        super().__init__()
        self._limits = limits

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = functools.partial(_Connection, limits=self._limits, direct=_is_direct(req))
        return self.do_open(connect, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, limits: DownloadLimits) -> None:
        super().__init__()
        self._limits = limits

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = functools.partial(_TlsConnection, limits=self._limits, direct=_is_direct(req))
        return self.do_open(connect, req)


def _is_direct(request: urllib.request.Request) -> bool:
    """Whether the request uses no proxy (urllib marks the two kinds of proxying differently)."""
    return not (request.has_proxy() or getattr(request, "_tunnel_host", None))


def require_public(address: str, host: str) -> None:
    """Raise PrivateAddressError unless an address of a host belongs to the public internet."""
    if not is_public(address):
        raise PrivateAddressError(f"private address {address} of {host}")
