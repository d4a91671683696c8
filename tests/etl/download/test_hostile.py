"""The native backend against a hostile web: bounded time and memory, a reason for each case."""

import functools
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from etl.download.base import Fetched, FetchOptions
from etl.download.errors import TRANSIENT
from etl.download.native import NativeBackend
from etl.download.resolve import Resolver
from etl.download.safe_http import DownloadLimits
from etl.media.decode import NormalizedImage, normalize_image
from etl.media.image import ImageLimits
from tests.etl.download.web import PICTURE, Web, served

DEADLINE = 2.0
LIMITS = ImageLimits(min_side=16, max_aspect=3, max_pixels=10**6)


def options(**changes) -> FetchOptions:
    limits = DownloadLimits(max_bytes=200_000, deadline=DEADLINE, allow_private=True)
    how = {"threads": 16, "timeout": 1.0, "retries": 0, "user_agent": None, "limits": limits}
    return FetchOptions(**{**how, **changes})


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with served() as server:
        yield server


def check(_: int, found: Fetched) -> NormalizedImage | str:
    if found.data is None:
        return found.reason
    return normalize_image(found.data, LIMITS, None)


CASES = {
    "sound": None,
    "do_to_sound": None,
    "do_long": None,
    "do_gzip": None,
    "missing": "http_404",
    "page": "wrong_type",
    "truncated": "truncated",
    "nothing": "empty_body",
    "pixel_bomb": "decompression_bomb",
    "zip_in_picture": "polyglot",
    "script_in_picture": "polyglot",
    "do_slow_body": "timeout",
    "do_slow_headers": "timeout",
    "do_hang": "timeout",
    "do_circle": "redirect_loop",
    "do_endless_redirects": "too_many_redirects",
    "do_to_file": "bad_redirect",
    "do_short": "incomplete_body",
    "do_announced": "body_too_large",
    "do_endless": "body_too_large",
    "do_gzip_bomb": "body_too_large",
    "do_brotli": "unknown_encoding",
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
    assert all(one.medium.data == PICTURE for one in found if isinstance(one, NormalizedImage))


def test_many_bad_answers_end_in_bounded_time_and_memory(web: Web) -> None:
    names = [name for name in CASES if CASES[name] is not None] * 6
    urls = [f"{web.base}/{name}?{number}" for number, name in enumerate(names)]
    limits = DownloadLimits(max_bytes=200_000, deadline=0.5, allow_private=True)
    native = NativeBackend(options(retries=1, timeout=0.3, limits=limits))
    tracemalloc.start()
    begun = time.monotonic()
    found = list(native.stream(urls, check))
    seconds = time.monotonic() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [
        name for name, one in zip(names, found, strict=True) if isinstance(one, NormalizedImage)
    ] == []
    # Far from exact: what matters is that neither grows with what servers send or withhold.
    attempts = 2 * len(urls)
    assert seconds < attempts * DEADLINE + 60
    assert peak < 64 << 20


def test_private_addresses_are_refused_at_every_hop(web: Web) -> None:
    closed = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)
    named = Resolver(allow_private=False, lookup=lambda _: ["127.0.0.1"])
    native = NativeBackend(options(bounds=closed), resolver=named)
    port = web.server_port
    for url in (web.base, f"http://innocent.example:{port}/sound", f"http://[::1]:{port}/sound"):
        (found,) = native.fetch([url])
        assert found.reason == "private_address", url
    assert found.data is None


def test_a_redirect_to_a_private_address_is_refused(web: Web) -> None:
    limits = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)

    class Trusting(Resolver):
        """Takes one name for a public one, so that its server can be reached."""

        def addresses(self, host: str) -> list[str]:
            return ["127.0.0.1"] if host == "public.example" else super().addresses(host)

    native = NativeBackend(options(limits=limits), resolver=Trusting(allow_private=False))
    (found,) = native.fetch([f"http://public.example:{web.server_port}/do_to_private"])
    assert found.reason == "private_address"
    assert "10.255.255.1" in found.detail


def test_a_server_that_asks_to_come_back_is_obeyed(web: Web) -> None:
    web.seen.remove_partial_work()
    busy, once = NativeBackend(options(retries=2)).fetch(
        [f"{web.base}/do_busy", f"{web.base}/do_busy_once"]
    )
    assert (busy.reason, web.seen["do_busy"]) == ("http_429", 1)  # an hour is left to another job
    assert (once.data, web.seen["do_busy_once"]) == (PICTURE, 2)


def test_permanent_failures_are_not_tried_again(web: Web) -> None:
    web.seen.remove_partial_work()
    (found,) = NativeBackend(options(retries=3)).fetch([f"{web.base}/missing"])
    assert (found.reason, web.seen["missing"]) == ("http_404", 1)
    assert found.reason not in TRANSIENT


def test_a_host_that_never_answers_is_given_up(web: Web) -> None:
    web.seen.remove_partial_work()
    native = NativeBackend(options(per_host=1, threads=2, robots=False, timeout=0.05))
    found = native.fetch([f"{web.base}/do_hang?{number}" for number in range(20)])
    assert {one.reason for one in found} <= {"timeout", "unreachable"}
    assert web.seen["do_hang"] == 8
    assert "given up after 8" in found[-1].detail


def test_results_keep_the_order_whatever_they_are(web: Web) -> None:
    names = ["do_slow_body", "sound", "not a url", "missing", "sound"]
    urls = [name if " " in name else f"{web.base}/{name}" for name in names]
    stream = NativeBackend(options()).stream(urls, lambda place, found: (place, found.reason))
    assert list(stream) == list(enumerate(["timeout", None, "bad_url", "http_404", None]))


def test_a_fault_of_ours_is_no_row_s_fault(web: Web) -> None:
    def broken(_: int, __: Fetched) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(NativeBackend(options()).stream([f"{web.base}/sound"] * 3, broken))


def test_connections_are_used_again(web: Web) -> None:
    native = NativeBackend(options(per_host=2))
    opened = []
    original = native.connections._new
    native.connections._new = functools.partial(_counted, original, opened)
    found = native.fetch([f"{web.base}/sound"] * 40)
    assert all(one.data == PICTURE for one in found)
    assert len(opened) <= 3  # two, and one for robots.txt at most


def _counted(original, opened, origin):
    opened.append(origin)
    return original(origin)


def test_a_proxy_is_asked_for_the_whole_url(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    monkeypatch.setenv("http_proxy", web.base.replace("//", "//name:word@"))
    monkeypatch.setenv("no_proxy", "")
    closed = DownloadLimits(max_bytes=1000, deadline=DEADLINE, allow_private=False)
    native = NativeBackend(options(bounds=closed, robots=False))
    named, literal = native.fetch(["http://example.invalid/x", "http://10.0.0.1/x"])
    assert (named.reason, literal.reason) == ("http_404", "private_address")
    assert web.seen["http:"] == 1  # the first part of the path is the URL's own
