"""Opt-outs: robots.txt (RFC 9309), and the X-Robots-Tag headers that img2dataset honours.

Rules are cached per origin for an hour. A missing robots.txt allows everything; one that is
temporarily unavailable (a 5xx status) forbids everything for now, as the RFC demands.
"""

from __future__ import annotations

import collections
import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult

from etl.download.connections import Connections, Origin, origin_of, read_body, split_url
from etl.download.errors import FetchError, classify

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""X-Robots-Tag values that img2dataset's own command honours by default."""

MAX_SIZE = 500 << 10
"""Bytes of a robots.txt that are read, the minimum that RFC 9309 (2.5) requires."""

_TTL = 3600.0
_FAILED_TTL = 60.0
_MAX_ORIGINS = 20_000
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def opted_out(headers: http.client.HTTPMessage, token: str) -> str | None:
    """The X-Robots-Tag that forbids the use of a response to everybody or to us, or None."""
    for value in headers.get_all("X-Robots-Tag", []):
        name, colon, rest = value.partition(":")
        directives = {one.strip().lower() for one in (rest if colon else name).split(",")}
        addressed = not colon or name.strip().lower() == token.lower()
        if addressed and directives & OPT_OUT_DIRECTIVES:
            return value
    return None


@dataclass(frozen=True)
class Rules:
    """A robots.txt's rules for one robot: path patterns, and whether each allows or forbids."""

    patterns: Sequence[tuple[str, bool]] = ()

    def allow(self, path: str) -> bool:
        """Whether the longest matching pattern allows the path; of equal ones, allow wins."""
        hits = [(len(text), allows) for text, allows in self.patterns if _matches(text, path)]
        return max(hits, default=(0, True))[1]


def parse_robots(text: str, token: str) -> Rules:
    """The rules for a product token: those of its own groups, or else those of `*`."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    names: list[str] = []
    in_names = False
    for line in text.splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            names = [*names, value.lower()] if in_names else [value.lower()]
            in_names = True
            groups.setdefault(value.lower(), [])
        elif key in ("allow", "disallow"):
            in_names = False
            if value:  # an empty rule is ignored
                quoted = urllib.parse.quote(value, safe="%/:=&?~#+!$,;'@()*[]|")
                for name in names:
                    groups[name].append((quoted, key == "allow"))
    return Rules(groups.get(token.lower(), groups.get("*", [])))


def _matches(pattern: str, path: str) -> bool:
    """Match a pattern with `*` (anything) and `$` (the end), in linear time."""
    anchored = pattern.endswith("$")
    first, *rest = re.sub(r"\*+", "*", pattern.removesuffix("$")).split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    for number, part in enumerate(rest):
        if anchored and number == len(rest) - 1:
            return len(path) - len(part) >= position and path.endswith(part)
        found = path.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return not anchored or position == len(path)


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | FetchError | None = None
    until: float = 0.0


class Robots:
    """Fetches and caches the robots.txt of each origin.

    Args:
        connections: the connection pool.
        token: our product token, which rules may name.
        deadline: seconds for one robots.txt.
    """

    def __init__(self, connections: Connections, *, token: str, deadline: float) -> None:
        self._connections = connections
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
        path = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        if rules and not rules.allow(path):
            raise FetchError("robots_disallowed", f"robots.txt forbids it to {self._token}")

    def _entry(self, origin: Origin) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(origin, _Entry())
            if len(self._entries) > _MAX_ORIGINS:
                self._entries.popitem(last=False)
            return entry

    def _load(self, url: SplitResult) -> Rules | FetchError:
        try:
            return self._fetch(url._replace(path="/robots.txt", query=""))
        except Exception as error:  # becomes the drop reason of all rows of this origin
            return classify(error)

    def _fetch(self, url: SplitResult) -> Rules:
        until = time.monotonic() + self._deadline
        for _ in range(_MAX_REDIRECTS + 1):
            with self._connections.get(url, until=until) as response:
                if response.status >= 500 or response.status == 429:
                    detail = f"HTTP {response.status} {response.reason}"
                    raise FetchError("robots_unavailable", detail)
                target = response.headers.get("Location")
                if response.status in _REDIRECTS and target:
                    url = split_url(urllib.parse.urljoin(url.geturl(), target))
                    continue
                if response.status != http.client.OK:
                    return Rules()
                return parse_robots(_read_start(response), self._token)
        return Rules()  # RFC 9309 (2.3.1.2): more than five redirects may count as unavailable


def _read_start(response: http.client.HTTPResponse) -> str:
    if response.length is not None and response.length <= MAX_SIZE:
        return read_body(response, MAX_SIZE).decode(errors="replace")
    return response.read(MAX_SIZE).decode(errors="replace")
