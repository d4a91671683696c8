"""robots.txt and X-Robots-Tag."""

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from etl.download.connections import Connections
from etl.download.errors import FetchError
from etl.download.resolve import Resolver
from etl.download.robots import Robots, opted_out, parse_robots
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
    assert parse_robots(TEXT, "MMLoom").allow(path) is allowed


def test_groups_are_by_name_or_for_all() -> None:
    assert not parse_robots(TEXT, "stranger").allow("/anything")
    assert parse_robots("Disallow: /\nnonsense", "mmloom").allow("/x")  # rules outside any group
    assert parse_robots("User-agent: *\nDisallow: /a\nAllow: /a", "mmloom").allow("/a")
    own = "User-agent: mmloom\nDisallow: "
    twice = f"{own}/a\nUser-agent: *\nAllow: /\n{own}/b"
    rules = parse_robots(twice, "mmloom")
    assert [rules.allow(path) for path in ("/a", "/b", "/c")] == [False, False, True]


def test_patterns_cost_linear_time() -> None:
    rules = parse_robots(f"User-agent: *\nDisallow: /{'*a' * 200}$", "mmloom")
    assert rules.allow("/" + "a" * 5000 + "b")


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
    headers = http.client.HTTPMessage()
    for value in values:
        headers["X-Robots-Tag"] = value
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


def check(web: Web, *paths: str) -> list[str | None]:
    resolver = Resolver(allow_private=True)
    connections = Connections(resolver=resolver, timeout=2, headers={})
    robots = Robots(connections, token="mmloom", deadline=2)
    reasons: list[str | None] = []
    for path in paths:
        try:
            robots.require(urlsplit(web.base + path))
            reasons.append(None)
        except FetchError as error:
            reasons.append(error.reason)
    connections.close()
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
    connections = Connections(resolver=Resolver(allow_private=True), timeout=1, headers={})
    with pytest.raises(FetchError) as caught:
        Robots(connections, token="mmloom", deadline=1).require(urlsplit(f"{base}/x"))
    assert caught.value.reason == "unreachable"
