"""Resolves names to addresses: cached, private ones refused, suspended while DNS is failing."""

from __future__ import annotations

import collections
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from etl.download.errors import FetchError, PrivateAddressError, classify
from etl.filters.urls import is_public

_TTL = 300.0  # seconds; most names of the web have a TTL of minutes
_FAILED_TTL = 60.0
_MAX_NAMES = 50_000
_WINDOW = 50  # most recent lookups, by which DNS counts as failing
_FAILING_SHARE = 0.9
_PROBE_SECONDS = 5.0

Lookup = Callable[[str], Sequence[str]]


def system_lookup(host: str) -> Sequence[str]:
    """Addresses of a host, by the system's resolver, whose own timeouts bound it."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class _Entry:
    answer: Future[Sequence[str]]
    until: float


class Resolver:
    """A cache of DNS results for all threads; concurrent lookups of a name are merged.

    A private address among a name's addresses refuses the name. Callers connect to the addresses
    that are returned, so no second lookup can differ from the one that was checked.

    Args:
        allow_private: do not refuse private and loopback addresses.
        lookup: resolves a name; may block, raises `socket.gaierror`.
    """

    def __init__(self, *, allow_private: bool, lookup: Lookup = system_lookup) -> None:
        self._allow_private = allow_private
        self._lookup = lookup
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[str, _Entry] = collections.OrderedDict()
        self._outcomes: collections.deque[str] = collections.deque(maxlen=_WINDOW)
        self._probe_at = 0.0

    def addresses(self, host: str) -> Sequence[str]:
        """The addresses to connect to for a host, in order of preference.

        Raises:
            FetchError: the name does not resolve (`dns_failure`), cannot be resolved now
                (`dns_temporary`), or has a private address.
        """
        entry, ours = self._entry(host)
        if ours:
            self._resolve(host, entry)
        return entry.answer.result()

    def _entry(self, host: str) -> tuple[_Entry, bool]:
        now = time.monotonic()
        with self._lock:
            entry = self._entries.get(host)
            if entry and entry.until > now:
                return entry, False
            if self._failing() and now < self._probe_at:
                raise FetchError(
                    "dns_temporary", "Temporary failure in name resolution of nearly all names"
                )
            self._probe_at = now + _PROBE_SECONDS
            entry = _Entry(Future(), now + _TTL)
            self._entries[host] = entry
            if len(self._entries) > _MAX_NAMES:
                self._entries.popitem(last=False)
            return entry, True

    def _resolve(self, host: str, entry: _Entry) -> None:
        outcome = "resolved"
        try:
            found = self._lookup(host)
            if not self._allow_private:
                for address in found:
                    if not is_public(address):
                        raise PrivateAddressError(f"private address {address} of {host}")
            entry.answer.set_result(found)
        except Exception as error:  # other threads wait for this result
            failure = classify(error)
            outcome = failure.reason
            with self._lock:  # failures are cached for a shorter time
                self._entries[host] = _Entry(entry.answer, time.monotonic() + _FAILED_TTL)
            entry.answer.set_exception(failure)
        with self._lock:
            self._outcomes.append(outcome)

    def _failing(self) -> bool:
        """Whether DNS as a whole is failing, rather than some names.

        Old lists contain many dead names, so these count only if nothing else was seen.
        """
        if len(self._outcomes) < _WINDOW:
            return False
        failed = {"dns_temporary", "dns_failure"}
        temporary = sum(outcome == "dns_temporary" for outcome in self._outcomes)
        return temporary >= _FAILING_SHARE * _WINDOW or failed.issuperset(self._outcomes)
