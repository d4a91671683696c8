"""Safe HTTP: the one client of this package, on urllib3.

urllib3 parses, pools, verifies certificates and talks to proxies. What it lacks is here: the
address that was checked is the one connected to, one deadline bounds a request from its connection
to the last byte of its response, and a body has a maximum size, also after decompression.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import re
import socket
import ssl
import string
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
)

from etl.download.errors import BodyError, FetchError
from etl.download.resolve import Resolver
from etl.filters.urls import is_literal

MAX_HOSTS = 128
"""Hosts to which idle connections are kept, the most recently used ones."""

_MAX_DRAIN = 64 << 10  # an error page up to this size is read so that the connection can be reused
_DRAIN_SECONDS = 2.0
_MAX_ADDRESSES = 3  # tried one after the other
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ENCODINGS = ("gzip", "x-gzip", "deflate")
_OTHER_ENCODINGS = ("br", "zstd", "compress", "x-compress", "exi", "pack200-gzip", "dcb", "dcz")
"""The other content codings that IANA has registered (RFC 9110, section 8.4.1). What else servers
send there (`UTF-8`, `none`, `binary`, `aws-chunked` …) is none, so the body is as it is."""

Origin = tuple[str, str, int]


class HttpClient:
    """Sends GET requests for all threads, through the proxies that the environment names.

    Args:
        resolver: resolves names to checked addresses.
        timeout: seconds to wait for a connection, and for each packet.
        headers: sent with every request.
        per_host: idle connections to keep for each host.
    """

    def __init__(
        self, *, resolver: Resolver, timeout: float, headers: Mapping[str, str], per_host: int
    ) -> None:
        # Its warnings are about what servers send, of which the drop reasons tell.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        context = ssl.create_default_context()
        context.sslsocket_class = _TlsSocket
        options: dict[str, Any] = {
            "num_pools": MAX_HOSTS,
            "maxsize": per_host,
            "ssl_context": context,
        }
        self._resolver = resolver
        self._timeout = urllib3.Timeout(connect=timeout, read=timeout)
        self._headers = dict(headers)
        self._direct = urllib3.PoolManager(**options)
        self._proxies = {
            scheme: _proxy_manager(address, options)
            for scheme, address in urllib.request.getproxies().items()
            if scheme in _DEFAULT_PORTS and address
        }
        for manager in (self._direct, *self._proxies.values()):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    @contextlib.contextmanager
    def get(
        self, url: SplitResult, *, until: float, headers: Mapping[str, str] | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Request a URL; the block receives the response before its body; follows no redirects.

        Args:
            url: an http or https URL, as `split_url` returns it.
            until: the deadline (`time.monotonic`) of the whole response.
            headers: sent in addition to those of the client.

        Raises:
            FetchError, OSError, http.client.HTTPException: see `errors.classify`.
        """
        pool, target = self._route(url)
        token = _request.set(_Request(self._resolver, until))
        try:
            response = self._send(pool, target, {**self._headers, **(headers or {})})
            try:
                yield response
                self._drain(response, until)
            except FetchError:  # such as a 404, whose page nobody has read
                self._drain(response, until)
                raise
            finally:
                response.close()  # if its body was read, its connection is in the pool again
        except HTTPError as error:
            raise _cause(error) from None
        finally:
            _request.reset(token)

    def _drain(self, response: urllib3.BaseHTTPResponse, until: float) -> None:
        """Read the rest of a short body, so that its connection can be used again."""
        left = response.length_remaining  # None if nobody knows
        if response.closed or (left is None and not getattr(response, "chunked", False)):
            return
        if left == 0:  # only the connection is to be given back
            response.drain_conn()
            return
        if (left or 0) > _MAX_DRAIN:
            return
        soon = min(until, time.monotonic() + _DRAIN_SECONDS)
        token = _request.set(_Request(self._resolver, soon))
        try:
            response.read(_MAX_DRAIN)
            response.read(1)  # what ends a body of unknown length comes after it
        except (HTTPError, OSError, HTTPException):
            pass  # then the connection is closed
        finally:
            _request.reset(token)

    def close(self) -> None:
        """Close the idle connections."""
        for manager in (self._direct, *self._proxies.values()):
            manager.clear()

    def _send(
        self, pool: urllib3.HTTPConnectionPool, target: str, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        send = functools.partial(
            pool.urlopen,
            "GET",
            target,
            headers=headers,
            timeout=self._timeout,
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )
        try:
            return send()
        except ProtocolError as error:
            if not isinstance(_cause(error), ConnectionError):
                raise
            return send()  # the server may have closed the idle connection meanwhile

    def _route(self, url: SplitResult) -> tuple[urllib3.HTTPConnectionPool, str]:
        """The pool of connections for a URL, and the target of the request."""
        scheme, host, port = origin_of(url)
        manager: urllib3.PoolManager = self._direct
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        if scheme in self._proxies and not urllib.request.proxy_bypass(host):
            if is_literal(host):
                self._resolver.addresses(host)  # nobody else would refuse a private address
            manager = self._proxies[scheme]
            target = url.geturl() if scheme == "http" else target
        return manager.connection_from_host(host, port, scheme), target


def _proxy_manager(address: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    url = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    headers = {}
    if url.username is not None:
        name, password = map(urllib.parse.unquote, (url.username, url.password or ""))
        headers = urllib3.make_headers(proxy_basic_auth=f"{name}:{password}")
    return urllib3.ProxyManager(url.geturl(), proxy_headers=headers, **options)


@dataclass(frozen=True)
class _Request:
    """What a connection needs to know of the request that its thread sends."""

    resolver: Resolver
    until: float

    def limit(self, seconds: float | None) -> float:
        """At most these seconds; raises TimeoutError after the deadline."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out: the deadline of the response has passed")
        return left if seconds is None else min(left, seconds)


_request: ContextVar[_Request] = ContextVar("request")


class _Socket(socket.socket):
    """A socket whose reads end at the deadline, however slowly the bytes come."""

    def recv_into(self, *args: Any) -> int:  # noqa: ANN401 - the library's signature
        self.settimeout(_request.get().limit(self.gettimeout()))
        return super().recv_into(*args)


class _TlsSocket(_Socket, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(_request.get().limit(self.gettimeout()))
        super().do_handshake(block)


class _Connection(HTTPConnection):
    def connect(self) -> None:
        _connect(self, super().connect)
        seconds = self.sock.gettimeout()
        self.sock = _Socket(fileno=self.sock.detach())
        self.sock.settimeout(seconds)


class _TlsConnection(HTTPSConnection):
    def connect(self) -> None:
        if not self.proxy:
            self.server_hostname = self.host
        _connect(self, super().connect)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _connect(connection: HTTPConnection, connect: Callable[[], None]) -> None:
    """Connect to a checked address in place of the name, so that nothing resolves it again.

    A proxy resolves names by itself; its own address need not be public.
    """
    request, name = _request.get(), connection.host
    addresses = [name] if connection.proxy else request.resolver.addresses(name)
    failure: Exception = OSError(f"{name} has no address")
    for address in addresses[:_MAX_ADDRESSES]:
        connection.host = address
        connection.timeout = request.limit(connection.timeout)
        try:
            return connect()
        except (NewConnectionError, ConnectTimeoutError) as error:
            failure = error
        finally:
            connection.host = name
    raise failure


def _cause(error: BaseException) -> BaseException:
    """The exception of the standard library that urllib3 has wrapped in its own."""
    while isinstance(error, HTTPError) and (inner := error.__cause__ or error.__context__):
        error = inner
    if isinstance(error, HTTPError) and not isinstance(error, HTTPException):
        return FetchError("bad_answer", str(error))  # found by urllib3 itself
    return error


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """A response's whole body of at most `limit` bytes; see `read_start`.

    Raises:
        BodyError: it is larger.
    """
    if (response.length_remaining or 0) > limit:
        raise BodyError(f"body larger than {limit} bytes")
    body = read_start(response, limit + 1)
    if len(body) > limit:
        raise BodyError(f"body larger than {limit} bytes")
    return body


def read_start(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """The first bytes of a response's body, decompressed.

    Raises:
        FetchError: its compression is unknown.
        http.client.IncompleteRead: it is shorter than its Content-Length.
    """
    decode = _set_encodings(response)
    try:
        body = response.read(size, decode_content=decode)
    except DecodeError as error:
        raise FetchError("unknown_encoding", str(error)) from None
    if len(body) < size:
        response.read(1)  # raises if it has ended too early
    return body


def _set_encodings(response: urllib3.BaseHTTPResponse) -> bool:
    """Reduce a response's Content-Encoding to its codings; returns whether there are any.

    Raises:
        FetchError: one of them cannot be decoded.
    """
    header = response.headers.get("Content-Encoding", "")
    names = [name.strip().lower() for name in header.split(",")]
    if other := next((name for name in names if name in _OTHER_ENCODINGS), None):
        raise FetchError("unknown_encoding", f"Content-Encoding {other!r}")
    codings = [name for name in names if name in _ENCODINGS]
    if codings:
        # urllib3 would take a name that it does not know for `deflate`.
        response.headers["Content-Encoding"] = ", ".join(codings)
    return bool(codings)


def redirect_target(response: urllib3.BaseHTTPResponse, url: SplitResult) -> str | None:
    """The URL that a response redirects to, or None.

    Servers send UTF-8 and Latin-1 there, which the library has read as Latin-1: the bytes are what
    they mean.
    """
    target = response.get_redirect_location()
    if not target:
        return None
    ascii_target = urllib.parse.quote(target.strip(), string.punctuation, "latin-1")
    return urllib.parse.urljoin(url.geturl(), ascii_target)


def origin_of(url: SplitResult) -> Origin:
    """Scheme, host and port of a URL."""
    return url.scheme, url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme]


_NOT_IN_HOST = re.compile(r"[\s/?#@\\]")
_SAFE = "%/:=&?~#+!$,;'@()*[]|"


def split_url(text: str) -> SplitResult:
    """Parse a URL for a request: paths quoted, host names in ASCII.

    Raises:
        FetchError: it is not an http or https URL with a host.
    """
    try:
        url = urllib.parse.urlsplit(text.strip())
        name, port = _ascii_host(url.hostname or ""), url.port
    except ValueError as error:  # UnicodeError is one
        raise FetchError("bad_url", f"bad URL {text[:200]}: {error}") from None
    if url.scheme not in _DEFAULT_PORTS or not name:
        raise FetchError("bad_url", f"bad URL {text[:200]}: want http or https, and a host")
    return SplitResult(
        url.scheme,
        (f"[{name}]" if ":" in name else name) + (f":{port}" if port else ""),
        urllib.parse.quote(url.path, safe=_SAFE),
        urllib.parse.quote(url.query, safe=_SAFE),
        "",
    )


@functools.lru_cache(maxsize=4096)
def _ascii_host(name: str) -> str:
    """A URL's host as requests have it; raises ValueError if it is none."""
    host = urllib.parse.unquote(name, errors="strict")
    if _NOT_IN_HOST.search(host):
        raise ValueError(f"{host!r} is no host")
    return str(ipaddress.ip_address(host)) if ":" in host else host.encode("idna").decode("ascii")
