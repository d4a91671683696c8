"""The native backend against a hostile web: bounded time and memory, a reason for each case."""

import time
import tracemalloc
from collections.abc import Iterator

import pytest

from etl.download.base import DownloadLimits, Fetched, FetchOptions
from etl.download.errors import TRANSIENT
from etl.download.native import NativeBackend
from etl.download.resolve import Resolver
from etl.media.decode import NormalizedImage, normalize_image
from etl.media.image import ImageLimits
from tests.etl.download.web import IMAGE, Web, served

DEADLINE = 2.0
LIMITS = ImageLimits(min_side=16, max_aspect=3, max_pixels=10**6)


def options(**changes) -> FetchOptions:
    limits = DownloadLimits(max_bytes=200_000, deadline=DEADLINE, allow_private=True)
    values = {"threads": 16, "timeout": 1.0, "retries": 0, "user_agent": None, "limits": limits}
    return FetchOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with served() as server:
        yield server


def check(_: int, fetched: Fetched) -> NormalizedImage | str:
    if fetched.data is None:
        return fetched.reason
    return normalize_image(fetched.data, LIMITS, None)


CASES = {
    "valid": None,
    "do_to_valid": None,
    "do_long": None,
    "do_gzip": None,
    "do_raw_deflate": None,
    "do_encoding?UTF-8": None,
    "do_encoding?aws-chunked": None,
    "do_encoding?none": None,
    "do_encoding?binary": None,
    "do_encoding?gzip": None,
    "do_encoding?aws-chunked,gzip": None,
    "do_to_utf8": None,
    "do_to_latin1": None,
    "do_to_blank": None,
    "a b.jpg": None,
    "missing": "http_404",
    "page": "wrong_type",
    "truncated": "truncated",
    "nothing": "empty_body",
    "pixel_bomb": "decompression_bomb",
    "zip_in_image": "polyglot",
    "script_in_image": "polyglot",
    "do_slow_body": "timeout",
    "do_slow_headers": "timeout",
    "do_hang": "timeout",
    "do_loop": "redirect_loop",
    "do_endless_redirects": "too_many_redirects",
    "do_to_file": "bad_redirect",
    "do_short": "incomplete_body",
    "do_announced": "body_too_large",
    "do_endless": "body_too_large",
    "do_gzip_bomb": "body_too_large",
    "do_brotli": "unknown_encoding",
    "do_encoding?br": "unknown_encoding",
    "do_encoding?zstd,gzip": "unknown_encoding",
    "do_gone": "http_404",
    "do_opt_out": "opted_out",
    "do_busy": "http_429",
    "do_broken": "http_500",
    "do_nonsense": "bad_answer",
    "do_vanish": "unreachable",
}


def test_each_case_has_its_reason(web: Web) -> None:
    urls = [f"{web.base}/{name}" for name in CASES]
    found = list(NativeBackend(options()).stream(urls, check))
    reasons = [None if isinstance(one, NormalizedImage) else one for one in found]
    assert dict(zip(CASES, reasons, strict=True)) == CASES
    assert all(one.medium.data == IMAGE for one in found if isinstance(one, NormalizedImage))


def test_many_bad_responses_take_bounded_time_and_memory(web: Web) -> None:
    names = [name for name in CASES if CASES[name] is not None] * 6
    urls = [f"{web.base}/{name}?{number}" for number, name in enumerate(names)]
    limits = DownloadLimits(max_bytes=200_000, deadline=0.5, allow_private=True)
    native = NativeBackend(options(retries=1, timeout=0.3, limits=limits))
    tracemalloc.start()
    started = time.monotonic()
    found = list(native.stream(urls, check))
    seconds = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [
        name for name, one in zip(names, found, strict=True) if isinstance(one, NormalizedImage)
    ] == []
    # Generous: the point is that neither grows with what servers send or withhold.
    attempts = 2 * len(urls)
    assert seconds < attempts * limits.deadline + 60
    assert peak < 64 << 20


def test_private_addresses_are_refused_however_they_are_named(web: Web) -> None:
    closed = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)
    resolver = Resolver(allow_private=False, lookup=lambda _: ["127.0.0.1"])
    native = NativeBackend(options(limits=closed), resolver=resolver)
    port = web.server_port
    for url in (web.base, f"http://private.example:{port}/valid", f"http://[::1]:{port}/valid"):
        (found,) = native.fetch([url])
        assert found.reason == "private_address", url
    assert found.data is None


def test_a_redirect_to_a_private_address_is_refused(web: Web) -> None:
    limits = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)

    class Trusting(Resolver):
        """Trusts one name, so that its server can be reached."""

        def addresses(self, host: str) -> list[str]:
            return ["127.0.0.1"] if host == "public.example" else super().addresses(host)

    native = NativeBackend(options(limits=limits), resolver=Trusting(allow_private=False))
    (found,) = native.fetch([f"http://public.example:{web.server_port}/do_to_private"])
    assert found.reason == "private_address"
    assert "10.255.255.1" in found.detail


def test_retry_after_is_honoured(web: Web) -> None:
    web.seen.clear()
    busy, once = NativeBackend(options(retries=2)).fetch(
        [f"{web.base}/do_busy", f"{web.base}/do_busy_once"]
    )
    assert (busy.reason, web.seen["do_busy"]) == ("http_429", 1)  # an hour is too long to wait
    assert (once.data, web.seen["do_busy_once"]) == (IMAGE, 2)


def test_permanent_failures_are_not_retried(web: Web) -> None:
    web.seen.clear()
    (found,) = NativeBackend(options(retries=3)).fetch([f"{web.base}/missing"])
    assert (found.reason, web.seen["missing"]) == ("http_404", 1)
    assert found.reason not in TRANSIENT


def test_an_unresponsive_host_is_given_up(web: Web) -> None:
    web.seen.clear()
    native = NativeBackend(options(per_host=1, threads=2, robots=False, timeout=0.05))
    found = native.fetch([f"{web.base}/do_hang?{number}" for number in range(20)])
    assert {one.reason for one in found} <= {"timeout", "unreachable"}
    assert ["given up after 8" in one.detail for one in found] == [False] * 8 + [True] * 12
    assert 0 < web.seen["do_hang"] <= 8  # on a busy machine the time may end before it is asked


def test_results_are_in_the_order_of_the_urls(web: Web) -> None:
    names = ["do_slow_body", "valid", "not a url", "missing", "valid"]
    urls = [name if " " in name else f"{web.base}/{name}" for name in names]
    stream = NativeBackend(options()).stream(urls, lambda index, fetched: (index, fetched.reason))
    assert list(stream) == list(enumerate(["timeout", None, "bad_url", "http_404", None]))


def test_a_bug_in_finish_is_raised(web: Web) -> None:
    def broken(_: int, __: Fetched) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(NativeBackend(options()).stream([f"{web.base}/valid"] * 3, broken))


def test_connections_are_reused(web: Web) -> None:
    web.connections = 0
    found = NativeBackend(options(per_host=2)).fetch([f"{web.base}/valid"] * 40)
    assert all(one.data == IMAGE for one in found)
    assert 0 < web.connections <= 3  # two, and one for robots.txt at most


@pytest.mark.parametrize("name", ["missing", "do_gone", "do_opt_out", "do_to_valid"])
def test_connections_are_reused_after_errors_and_redirects(web: Web, name: str) -> None:
    web.connections = 0
    urls = [f"{web.base}/{name}?{number}" for number in range(40)]
    assert len(NativeBackend(options(per_host=2)).fetch(urls)) == 40
    assert 0 < web.connections <= 3


def test_a_body_that_is_too_large_to_drain_closes_its_connection(web: Web) -> None:
    web.connections = 0
    urls = [f"{web.base}/do_announced?{number}" for number in range(4)]
    assert {one.reason for one in NativeBackend(options(per_host=1)).fetch(urls)} == {
        "body_too_large"
    }
    assert web.connections >= 4


def test_a_proxy_receives_the_whole_url(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    monkeypatch.setenv("http_proxy", web.base.replace("//", "//name:word@"))
    monkeypatch.setenv("no_proxy", "")
    closed = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)
    native = NativeBackend(options(limits=closed, robots=False))
    named, literal = native.fetch(["http://example.invalid/x", "http://10.0.0.1/x"])
    assert (named.reason, literal.reason) == ("http_404", "private_address")
    assert web.seen["http:"] == 1  # the first part of the path is the URL's own
