"""robots.txt and X-Robots-Tag."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import urllib3

from etl.download.errors import FetchError
from etl.download.resolve import Resolver
from etl.download.robots import Robots, opted_out, parse_robots
from etl.download.safe_http import HttpClient
from tests.etl.download.web import Handler, Web, served

TEXT = """
# the first group
User-agent: mmloom
User-agent: other
Disallow: /private
Allow: /private/open$
Disallow: /*.gif$   # animations
Disallow:

User-agent: *
Disallow: /
"""


def allow(text: str, path: str, *, token: str = "mmloom") -> bool:
    return parse_robots(text, token).can_fetch(f"http://example.org{path}", token)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/private", False),
        ("/private/x", False),
        ("/private/open", True),
        ("/private/open/x", False),
        ("/a/b.gif", False),
        ("/a/b.gif?x", True),
        ("/b.gifs", True),
    ],
)
def test_the_longest_rule_decides(path: str, allowed: bool) -> None:
    assert allow(TEXT, path, token="MMLoom") is allowed


def test_groups_are_by_name_or_for_all() -> None:
    assert not allow(TEXT, "/anything", token="stranger")
    assert allow("Disallow: /\nnonsense", "/x")  # rules outside any group
    assert allow("User-agent: *\nDisallow: /a\nAllow: /a", "/a")
    assert allow("User-agent: mm\nDisallow: /", "/a")
    own = "User-agent: mmloom\nDisallow: "
    twice = f"{own}/a\nUser-agent: *\nAllow: /\n{own}/b"
    assert [allow(twice, path) for path in ("/a", "/b", "/c")] == [False, False, True]


def test_patterns_cost_linear_time() -> None:
    assert allow(f"User-agent: *\nDisallow: /{'*a' * 200}$", "/" + "a" * 5000 + "b")


@pytest.mark.parametrize(
    ("values", "out"),
    [
        (["noai"], True),
        (["all, NoImageAI"], True),
        (["nosnippet"], False),
        (["otherbot: noai"], False),
        (["MMLoom: noindex"], True),
        (["otherbot: noai", "noimageindex"], True),
        ([], False),
    ],
)
def test_headers_opt_out(values: list[str], out: bool) -> None:
    headers = urllib3.HTTPHeaderDict()
    for value in values:
        headers.add("X-Robots-Tag", value)
    assert bool(opted_out(headers, "mmloom")) is out


class RobotsHandler(Handler):
    """Serves the server's `robots` (status and body) as /robots.txt."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if self.path == "/robots.txt":
            self.server.seen["robots.txt"] += 1
            status, body = self.server.robots
            self.answer(status, body=body)
        else:
            super().do_GET()


@pytest.fixture
def web() -> Iterator[Web]:
    with served() as server:
        server.RequestHandlerClass = RobotsHandler
        yield server


def http_client() -> HttpClient:
    return HttpClient(resolver=Resolver(allow_private=True), timeout=2, per_host=2, headers={})


def check(web: Web, *paths: str) -> list[str | None]:
    client = http_client()
    robots = Robots(client, token="mmloom", deadline=2)
    reasons: list[str | None] = []
    for path in paths:
        try:
            robots.require(urlsplit(web.base + path))
            reasons.append(None)
        except FetchError as error:
            reasons.append(error.reason)
    client.close()
    return reasons


def test_robots_txt_is_fetched_once(web: Web) -> None:
    web.robots = (200, b"User-agent: *\nDisallow: /no")
    assert check(web, "/yes", "/no", "/no/2", "/yes/2") == [
        None,
        "robots_disallowed",
        "robots_disallowed",
        None,
    ]
    assert web.seen["robots.txt"] == 1


def test_missing_rules_allow_all_and_unavailable_ones_nothing(web: Web) -> None:
    web.robots = (404, b"")
    assert check(web, "/x") == [None]
    web.robots = (503, b"")
    assert check(web, "/x", "/y") == ["robots_unavailable"] * 2
    web.robots = (200, b"User-agent: *\nDisallow: /\n" + b"#" * 10**6)
    assert check(web, "/x") == ["robots_disallowed"]


def test_an_unreachable_host_is_reported_as_such() -> None:
    with served() as gone:
        base = gone.base
    with pytest.raises(FetchError) as caught:
        Robots(http_client(), token="mmloom", deadline=1).require(urlsplit(f"{base}/x"))
    assert caught.value.reason == "unreachable"
