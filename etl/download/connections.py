"""A pool of keep-alive connections, each to an address that was checked.

urllib3 would work, too; measured on one core against the same server, http.client with this pool
needs two thirds of its CPU per request (docs/etl.md). The pool adds what neither has: the checked
address is the one connected to, and one deadline bounds a response from its status line to its last
byte.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult

from etl.download.errors import FetchError
from etl.download.resolve import Resolver
from etl.download.safe_http import BodyError, TimedReader

MAX_IDLE = 256
"""Idle connections of one backend, over all hosts."""
_MAX_DRAIN = 64 << 10  # an error page up to this size is read so that the connection can be reused
_MAX_ADDRESSES = 3  # tried one after the other
_DEFAULT_PORTS = {"http": 80, "https": 443}
_STALE = (ConnectionResetError, BrokenPipeError, http.client.BadStatusLine)

Origin = tuple[str, str, int]


class _Response(http.client.HTTPResponse):
    """Reads its status, headers and body before a deadline."""

    def __init__(self, sock: socket.socket, *args: Any, end: float, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(TimedReader(self.fp.detach(), sock, end))


class _Connection(http.client.HTTPConnection):
    """Connects only to addresses from the resolver; `used` counts its completed requests."""

    def __init__(self, host: str, port: int, *, resolver: Resolver, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._resolver = resolver
        self._timeout = timeout
        self.used = 0
        self.until = 0.0

    def connect(self) -> None:
        """See `http.client`; a tunnel goes through the proxy."""
        self.sock = self._dial()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tunnel_host:  # type: ignore[attr-defined]
            self._tunnel()  # type: ignore[attr-defined]

    def _dial(self) -> socket.socket:
        error: OSError | None = None
        for address in self._resolver.addresses(self.host)[:_MAX_ADDRESSES]:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out: its deadline is over")
            try:
                return socket.create_connection((address, self.port), min(self._timeout, left))
            except OSError as found:
                error = found
        raise error or OSError(f"{self.host} has no address")

    def response_class(self, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:  # type: ignore[override]  # noqa: ANN401
        self.sock.settimeout(self._timeout)  # the previous response shortened it
        return _Response(*args, end=self.until, **kwargs)


class _TlsConnection(_Connection):
    """A connection over TLS that verifies the host's certificate."""

    default_port = 443

    def connect(self) -> None:
        """See `_Connection.connect`."""
        super().connect()
        name = self._tunnel_host or self.host  # type: ignore[attr-defined]
        self.sock = _tls_context().wrap_socket(self.sock, server_hostname=name)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class Connections:
    """A pool of connections for all threads.

    Args:
        resolver: resolves names to checked addresses.
        timeout: seconds to wait for a connection, and for each packet.
        headers: sent with every request.
    """

    def __init__(self, *, resolver: Resolver, timeout: float, headers: dict[str, str]) -> None:
        self._resolver = resolver
        # A proxy resolves names by itself; its own address need not be public.
        self._proxy_resolver = Resolver(allow_private=True)
        self._proxies = {k: urllib.parse.urlsplit(v) for k, v in _environment_proxies().items()}
        self._timeout = timeout
        self._headers = headers
        self._lock = threading.Lock()
        self._idle: collections.OrderedDict[int, tuple[Origin, _Connection]] = (
            collections.OrderedDict()
        )
        self._by_origin: dict[Origin, list[int]] = {}

    @contextlib.contextmanager
    def get(self, url: SplitResult, *, until: float) -> Iterator[http.client.HTTPResponse]:
        """Request a URL; the block receives the response before its body; follows no redirects.

        Args:
            url: an http or https URL, as `split_url` returns it.
            until: the deadline (`time.monotonic`) of the whole response.

        Raises:
            FetchError, OSError, http.client.HTTPException: see `errors.classify`.
        """
        origin = origin_of(url)
        connection, response = self._send(origin, url, until)
        reusable = False
        try:
            yield response
            reusable = _drain(response)
        finally:
            if reusable:
                self._put_back(origin, connection)
            else:
                response.close()
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            found = [connection for _, connection in self._idle.values()]
            self._idle.clear()
            self._by_origin.clear()
        for connection in found:
            connection.close()

    def _send(
        self, origin: Origin, url: SplitResult, until: float
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        while True:
            connection = self._take(origin) or self._new(origin)
            connection.until = until
            try:
                target, headers = self._request(url)
                connection.request("GET", target, headers=headers)
                return connection, connection.getresponse()
            except _STALE:  # the server may have closed an idle connection meanwhile: try again
                connection.close()
                if not connection.used:
                    raise
            except BaseException:
                connection.close()
                raise

    def _take(self, origin: Origin) -> _Connection | None:
        with self._lock:
            numbers = self._by_origin.get(origin)
            if not numbers:
                return None
            _, connection = self._idle.pop(numbers.pop())
            return connection

    def _put_back(self, origin: Origin, connection: _Connection) -> None:
        connection.used += 1
        oldest = None
        with self._lock:
            self._idle[id(connection)] = (origin, connection)
            self._by_origin.setdefault(origin, []).append(id(connection))
            if len(self._idle) > MAX_IDLE:
                number, (other, oldest) = self._idle.popitem(last=False)
                self._by_origin[other].remove(number)
                if not self._by_origin[other]:
                    del self._by_origin[other]
        if oldest:
            oldest.close()

    def _new(self, origin: Origin) -> _Connection:
        scheme, host, port = origin
        kind = _TlsConnection if scheme == "https" else _Connection
        proxy = self._proxy(scheme, host)
        if not proxy:
            return kind(host, port, resolver=self._resolver, timeout=self._timeout)
        connection = kind(
            proxy.hostname or "",
            proxy.port or 80,
            resolver=self._proxy_resolver,
            timeout=self._timeout,
        )
        if scheme == "https":
            connection.set_tunnel(host, port, _proxy_headers(proxy))
        return connection

    def _proxy(self, scheme: str, host: str) -> SplitResult | None:
        found = self._proxies.get(scheme)
        return None if not found or urllib.request.proxy_bypass(host) else found

    def _request(self, url: SplitResult) -> tuple[str, dict[str, str]]:
        """The request target and headers; a proxy needs the whole URL."""
        proxy = self._proxy(url.scheme, url.hostname or "")
        if url.scheme == "http" and proxy:
            return url._replace(fragment="").geturl(), {**self._headers, **_proxy_headers(proxy)}
        return f"{url.path or '/'}?{url.query}" if url.query else url.path or "/", self._headers


def _environment_proxies() -> dict[str, str]:
    found = urllib.request.getproxies()
    return {scheme: found[scheme] for scheme in ("http", "https") if found.get(scheme)}


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def origin_of(url: SplitResult) -> Origin:
    """Scheme, host and port of a URL."""
    return url.scheme, url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme]


_SAFE = "%/:=&?~#+!$,;'@()*[]|"


def split_url(text: str) -> SplitResult:
    """Parse a URL for a request: paths quoted, host names in ASCII.

    Raises:
        FetchError: it is not an http or https URL with a host.
    """
    try:
        url = urllib.parse.urlsplit(text.strip())
        host, port = url.hostname or "", url.port
        ipv6 = ":" in host
        name = str(ipaddress.ip_address(host)) if ipv6 else host.encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError is one
        raise FetchError("bad_url", str(error)) from None
    if url.scheme not in _DEFAULT_PORTS or not name:
        raise FetchError("bad_url", f"{text[:200]}: not an http or https URL with a host")
    return SplitResult(
        url.scheme,
        (f"[{name}]" if ipv6 else name) + (f":{port}" if port else ""),
        urllib.parse.quote(url.path, safe=_SAFE),
        urllib.parse.quote(url.query, safe=_SAFE),
        "",
    )


def _drain(response: http.client.HTTPResponse) -> bool:
    """Read the small rest of a response; returns whether the connection can be reused."""
    if response.will_close:
        return False
    if not response.isclosed():
        if response.length is None or response.length > _MAX_DRAIN:
            return False
        response.read()
    return response.isclosed()


def read_body(response: http.client.HTTPResponse, limit: int) -> bytes:
    """A response's whole body, decompressed if necessary, of at most `limit` bytes.

    Raises:
        BodyError: it is larger, or the deadline has passed.
        FetchError: its compression is unknown.
        http.client.IncompleteRead: it is shorter than its Content-Length.
    """
    if response.length is not None and response.length > limit:
        raise BodyError(f"body larger than {limit} bytes")
    # Without an amount, http.client raises if the body is shorter than its Content-Length.
    body = response.read() if response.length is not None else response.read(limit + 1)
    if len(body) > limit:
        raise BodyError(f"body larger than {limit} bytes")
    return _decompressed(body, response.headers.get("Content-Encoding", "").strip().lower(), limit)


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError("unknown_encoding", f"Content-Encoding {encoding[:40]!r}")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib by its header
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise FetchError("unknown_encoding", f"Content-Encoding {encoding}: {error}") from None
    if len(plain) > limit:
        raise BodyError(f"body larger than {limit} bytes when decompressed")
    return plain
