"""The HTTP client: TLS, proxies, deadlines and addresses."""

import http.server
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from etl.download.base import DownloadLimits, Fetched, FetchOptions
from etl.download.native import NativeBackend
from etl.download.resolve import Resolver
from tests.etl.download.web import IMAGE, Web, served

NAME = "secure.example"


def fetch(url: str, *, addresses: tuple[str, ...] = ("127.0.0.1",), **changes) -> Fetched:
    """Fetch a URL whose host has these addresses, whatever its name."""
    limits = DownloadLimits(max_bytes=200_000, deadline=2.0, allow_private=True)
    values = {"threads": 1, "timeout": 60, "retries": 0, "user_agent": None, "limits": limits}
    options = FetchOptions(**{**values, "robots": False, **changes})
    resolver = Resolver(allow_private=True, lookup=lambda _: addresses)
    (found,) = NativeBackend(options, resolver=resolver).fetch([url])
    return found


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server with a certificate for NAME that is trusted; `names` are those asked for."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    with served() as web:
        web.names = []
        context.sni_callback = lambda _socket, name, _context: web.names.append(name)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        yield web


def test_certificates_are_verified_by_name(secure: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(f"https://{NAME}:{secure.server_port}/valid").data == IMAGE
    assert fetch(f"https://other.example:{secure.server_port}/valid").reason == "tls_failure"
    assert secure.names == [NAME, "other.example"]
    monkeypatch.delenv("SSL_CERT_FILE")
    assert fetch(f"https://{NAME}:{secure.server_port}/valid").reason == "tls_failure"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Connects every tunnel to the server's `target`; `tunnels` records what was asked for."""

    def do_CONNECT(self) -> None:
        self.server.tunnels.append((self.path, self.headers["Proxy-Authorization"]))
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.server.target) as origin:
            ends = {self.connection: origin, origin: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy_to(port: int) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        proxy.target, proxy.tunnels = ("127.0.0.1", port), []
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def test_https_goes_through_a_tunnel_of_the_proxy(
    secure: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    with proxy_to(secure.server_port) as proxy:
        monkeypatch.setenv("https_proxy", f"http://name:word@127.0.0.1:{proxy.server_port}")
        found = fetch(f"https://{NAME}/valid", addresses=())  # the proxy resolves the name
        assert found.data == IMAGE
        assert fetch("https://other.example/valid", addresses=()).reason == "tls_failure"
    assert proxy.tunnels[0] == (f"{NAME}:443", "Basic bmFtZTp3b3Jk")
    assert secure.names == [NAME, "other.example"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_accepts_and_says_nothing_meets_the_deadline(scheme: str) -> None:
    limits = DownloadLimits(max_bytes=1000, deadline=0.3, allow_private=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts
        port = silent.getsockname()[1]
        assert fetch(f"{scheme}://{NAME}:{port}/", limits=limits).reason == "timeout"


def test_the_next_address_is_tried() -> None:
    with served() as web:  # on 127.0.0.1 only
        url = f"http://many.example:{web.server_port}/valid"
        assert fetch(url, addresses=("127.0.0.2", "127.0.0.1")).data == IMAGE
        assert fetch(url, addresses=("127.0.0.2",)).reason == "unreachable"


def test_a_connection_that_the_server_closes_meanwhile_is_replaced() -> None:
    limits = DownloadLimits(max_bytes=200_000, deadline=5.0, allow_private=True)
    options = {"threads": 1, "timeout": 5, "retries": 0, "user_agent": None, "limits": limits}
    native = NativeBackend(FetchOptions(**options, robots=False))
    with served() as web:
        found = native.fetch([f"{web.base}/do_close_on_next"] * 3)
        assert [one.data for one in found] == [IMAGE] * 3
        assert web.connections == 3


def test_contradictory_lengths_are_a_bad_answer() -> None:
    with served() as web:
        assert fetch(f"{web.base}/do_two_lengths").reason == "bad_answer"
