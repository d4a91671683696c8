"""Opt-outs: robots.txt (RFC 9309), and the X-Robots-Tag headers that img2dataset honours.

Rules are cached per origin for an hour. A missing robots.txt allows everything; one that is
temporarily unavailable (a 5xx status) forbids everything for now, as the RFC demands.
"""

from __future__ import annotations

import collections
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult

import urllib3
from protego import Protego

from etl.download.errors import FetchError, classify
from etl.download.safe_http import (
    HttpClient,
    Origin,
    origin_of,
    read_start,
    redirect_target,
    split_url,
)

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""X-Robots-Tag values that img2dataset's own command honours by default."""

MAX_SIZE = 500 << 10
"""Bytes of a robots.txt that are read, the minimum that RFC 9309 (2.5) requires."""

_TTL = 3600.0
_FAILED_TTL = 60.0
_MAX_ORIGINS = 5_000  # the rules of one take 1 to 100 kB
_MAX_REDIRECTS = 5


def opted_out(headers: urllib3.HTTPHeaderDict, token: str) -> str | None:
    """The X-Robots-Tag that forbids the use of a response to everybody or to us, or None."""
    for value in headers.get_all("X-Robots-Tag", []):
        name, colon, rest = value.partition(":")
        directives = {one.strip().lower() for one in (rest if colon else name).split(",")}
        addressed = not colon or name.strip().lower() == token.lower()
        if addressed and directives & OPT_OUT_DIRECTIVES:
            return value
    return None


def parse_robots(text: str, token: str) -> Protego:
    """The rules of a robots.txt, of which those for a product token will be asked for.

    Protego also takes a group for ours whose name begins our token, so other robots lose theirs.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        key, _, value = line.partition("#")[0].partition(":")
        if key.strip().lower() == "user-agent" and value.strip().lower() not in (
            "*",
            token.lower(),
        ):
            lines[number] = "User-agent: -"
    return Protego.parse("\n".join(lines))


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Protego | FetchError | None = None
    until: float = 0.0


class Robots:
    """Fetches and caches the robots.txt of each origin.

    Args:
        client: requests them.
        token: our product token, which rules may name.
        deadline: seconds for one robots.txt.
    """

    def __init__(self, client: HttpClient, *, token: str, deadline: float) -> None:
        self._client = client
        self._token = token
        self._deadline = deadline
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Origin, _Entry] = collections.OrderedDict()

    def require(self, url: SplitResult) -> None:
        """Raise FetchError if the URL is forbidden, or its host does not respond."""
        entry = self._entry(origin_of(url))
        with entry.lock:  # threads with the same origin wait for its one robots.txt
            if entry.until < time.monotonic():
                entry.rules = self._load(url)
                failed = isinstance(entry.rules, FetchError)
                entry.until = time.monotonic() + (_FAILED_TTL if failed else _TTL)
            rules = entry.rules
        if isinstance(rules, FetchError):
            raise FetchError(rules.reason, f"robots.txt: {rules.detail}", wait=rules.wait)
        if rules and not rules.can_fetch(url.geturl(), self._token):
            raise FetchError("robots_disallowed", f"robots.txt forbids it to {self._token}")

    def _entry(self, origin: Origin) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(origin, _Entry())
            self._entries.move_to_end(origin)
            if len(self._entries) > _MAX_ORIGINS:
                self._entries.popitem(last=False)
            return entry

    def _load(self, url: SplitResult) -> Protego | FetchError:
        try:
            return self._fetch(url._replace(path="/robots.txt", query=""))
        except Exception as error:  # becomes the drop reason of all rows of this origin
            return classify(error)

    def _fetch(self, url: SplitResult) -> Protego:
        until = time.monotonic() + self._deadline
        for _ in range(_MAX_REDIRECTS + 1):
            with self._client.get(url, until=until) as response:
                if response.status >= 500 or response.status == 429:
                    detail = f"HTTP {response.status} {response.reason}"
                    raise FetchError("robots_unavailable", detail)
                if target := redirect_target(response, url):
                    url = split_url(target)
                    continue
                if response.status != 200:
                    return Protego()
                text = read_start(response, MAX_SIZE).decode("utf-8-sig", errors="replace")
                return parse_robots(text, self._token)
        return Protego()  # RFC 9309 (2.3.1.2): more than five redirects may count as unavailable
