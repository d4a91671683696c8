"""Download backends: their interface, their limits, and rows that img2dataset loses."""

import http.client
import http.server
import sys
import threading
import types
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest

from etl.download.backends import LOST, Img2DatasetBackend, make_backend, opener, reason_of
from etl.download.base import DownloadLimits, Fetched, FetchOptions, dns_outage, fetch
from etl.download.errors import BodyError, PrivateAddressError
from etl.download.native import NativeBackend

LIMITS = DownloadLimits(max_bytes=1000, deadline=0.5, allow_private=True)


class Hostile(http.server.BaseHTTPRequestHandler):
    """Responds by path: bodies that are too long, too slow or too short, and redirects."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        getattr(self, self.path.strip("/").split("?", maxsplit=1)[0])()

    def answer(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def valid(self) -> None:
        self.answer(200, ("Content-Length", "5"), body=b"valid")

    def chunked(self) -> None:
        self.answer(200, ("Transfer-Encoding", "chunked"), body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    def announced(self) -> None:
        self.answer(200, ("Content-Length", "100000"))
        self.close_connection = True

    def endless(self) -> None:
        self.answer(200, ("Connection", "close"), body=b"x" * 5000)
        self.close_connection = True

    def short(self) -> None:
        self.answer(200, ("Content-Length", "100"), body=b"only this")
        self.close_connection = True

    def slow(self) -> None:
        self.answer(200, ("Content-Length", "900"))
        for _ in range(900):  # each packet comes before the socket's own timeout
            if self.server.stop.wait(0.05):
                break
            try:
                self.wfile.write(b"x")
            except OSError:
                break
        self.close_connection = True

    def slow_headers(self) -> None:
        self.send_response(200)
        self.flush_headers()
        for _ in range(900):
            if self.server.stop.wait(0.05):
                break
            try:
                self.wfile.write(b"X")
            except OSError:
                break
        self.close_connection = True

    def loop(self) -> None:
        self.answer(302, ("Location", "/loop"), ("Content-Length", "0"))

    def local_file(self) -> None:
        self.answer(302, ("Location", "file:///etc/hostname"), ("Content-Length", "0"))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        server.stop = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.stop.set()
        server.shutdown()
        thread.join()


def read(url: str, limits: DownloadLimits = LIMITS) -> bytes:
    options = FetchOptions(threads=1, timeout=5, retries=0, user_agent=None, limits=limits)
    with opener(options).open(url) as answer:
        return answer.read()


def test_valid_bodies_are_read_completely(hostile: str) -> None:
    assert read(f"{hostile}/valid") == b"valid"
    assert read(f"{hostile}/chunked") == b"abcde"


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("announced", BodyError, "body_too_large"),
        ("endless", BodyError, "body_too_large"),
        ("short", http.client.IncompleteRead, "incomplete_body"),
        ("slow", OSError, "timeout"),
        ("slow_headers", OSError, "timeout"),
        ("loop", urllib.error.HTTPError, "redirect_loop"),
        ("local_file", urllib.error.HTTPError, "http_302"),
    ],
)
def test_hostile_bodies_end_with_a_reason(
    hostile: str, path: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error) as caught:
        read(f"{hostile}/{path}")
    assert reason_of(str(caught.value)) == reason


def test_private_addresses_are_refused_when_connecting(hostile: str) -> None:
    closed = DownloadLimits(max_bytes=1000, deadline=5, allow_private=False)
    for url in (f"{hostile}/valid", hostile.replace("127.0.0.1", "localhost") + "/valid"):
        with pytest.raises(urllib.error.URLError) as caught:
            read(url, closed)
        assert isinstance(caught.value.reason, PrivateAddressError)
        assert reason_of(str(caught.value)) == "private_address"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 503: Service Unavailable", "http_503"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno 111] Connection refused>", "unreachable"),
        ("<urlopen error [Errno 101] Network is unreachable>", "unreachable"),
        ("Remote end closed connection without response", "unreachable"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns_failure"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns_temporary"),
        (
            "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
            "tls_failure",
        ),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("IncompleteRead(3 bytes read, 5 more expected)", "incomplete_body"),
        ("Content-Encoding 'br'", "unknown_encoding"),
        ("Received response with content-encoding: gzip, but failed", "unknown_encoding"),
        ("something nobody has seen", "download_failed"),
    ],
)
def test_errors_have_classes(message: str, reason: str) -> None:
    assert reason_of(message) == reason


class Fake:
    """A backend with fixed results."""

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        return [
            Fetched(data=url.encode())
            if "good" in url
            else Fetched(reason="timeout", detail="after 10 s")
            for url in urls
        ]

    def stream(self, urls, finish):
        return iter(finish(index, fetched) for index, fetched in enumerate(self.fetch(urls)))


def test_a_backend_can_be_used_as_a_filter() -> None:
    result = fetch(pa.table({"url": ["good", "bad"]}), backend=Fake())
    assert result.reasons == [None, "timeout"]
    assert result.details == [None, "after 10 s"]
    assert result.columns["data"].to_pylist() == [b"good", None]


class Forgetful:
    """A fake of img2dataset's downloader that forgets a URL once, or always."""

    attempts: list[list[str]]

    def __init__(self, sample_writer_class, number_sample_per_shard: int, **_: object) -> None:
        self._writer = sample_writer_class(0, "", False, 5, None, "jpg")
        assert number_sample_per_shard > 1

    def __call__(self, shard: tuple[int, str]) -> tuple[bool, object]:
        urls = pa.ipc.open_file(shard[1]).read_all()["url"].to_pylist()
        self.attempts.append(urls)
        for index, url in reversed(list(enumerate(urls))):  # results come in no particular order
            if url == "always" or (url == "once" and len(self.attempts) == 1):
                continue
            failed = url == "dead"
            meta = {
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404: Not Found" if failed else None,
            }
            self._writer.write(None if failed else url.encode(), f"{index:07d}", None, meta)
        self._writer.close()
        return "always" not in urls, shard


def test_rows_that_img2dataset_loses_are_retried_and_then_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    downloader = types.ModuleType("img2dataset.downloader")
    downloader.Downloader = Forgetful
    resizer = types.ModuleType("img2dataset.resizer")
    resizer.Resizer = lambda *_, **__: None
    monkeypatch.setitem(sys.modules, "img2dataset", types.ModuleType("img2dataset"))
    monkeypatch.setitem(sys.modules, "img2dataset.downloader", downloader)
    monkeypatch.setitem(sys.modules, "img2dataset.resizer", resizer)
    monkeypatch.setattr(urllib.request, "_opener", None)  # monkeypatch restores it afterwards
    monkeypatch.setattr(Forgetful, "attempts", [], raising=False)
    options = FetchOptions(threads=2, timeout=1, retries=0, user_agent=None, limits=LIMITS)
    found = Img2DatasetBackend(options).fetch(["good", "always", "dead", "once"])
    assert found == [
        Fetched(data=b"good"),
        Fetched(reason=LOST),
        Fetched(reason="http_404", detail="HTTP Error 404: Not Found"),
        Fetched(data=b"once"),
    ]
    assert Forgetful.attempts == [["good", "always", "dead", "once"], ["always", "once"]]


def test_backends_are_selected_by_name() -> None:
    options = FetchOptions(threads=2, timeout=1, retries=0, user_agent="me", limits=LIMITS)
    native = make_backend("native", options)
    assert isinstance(native, NativeBackend)
    assert native.token == "me"


def test_a_dns_outage_is_distinguished_from_dead_names() -> None:
    urls = [f"http://host{number}.example/x" for number in range(40)]
    drops = [{"url": url, "reason": "dns_temporary"} for url in urls]
    assert "40 of 40 hosts" in dns_outage(urls, drops)
    assert dns_outage(urls, drops[:30]) is None
    assert dns_outage(urls, [{**drop, "reason": "http_404"} for drop in drops]) is None
    assert dns_outage(urls[:10], drops[:10]) is None  # too few to tell
    literal = [f"http://192.0.2.{number}/x" for number in range(40)]
    assert dns_outage([*literal, None, "no url"], drops) is None
