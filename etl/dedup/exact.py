"""Exact deduplication over a whole job."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from etl.filters.base import FilterResult


class FirstSeen:
    """Drops every row whose key an earlier row had. Stateful: pass the batches in input order.

    So the result is deterministic: the earliest input row is kept, in whatever order downloads
    finish. Holds a 16-byte digest per distinct key (about 100 bytes in Python's memory).

    Args:
        column: the key's column (string); rows whose key is null are kept.
        reason: the reason of the rows that are dropped.
    """

    def __init__(self, column: str, reason: str) -> None:
        self._column = column
        self._reason = reason
        self._seen: set[bytes] = set()

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter the next batch."""
        return FilterResult(reasons=[self._check(key) for key in table[self._column].to_pylist()])

    def _check(self, key: str | None) -> str | None:
        if key is None:
            return None
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if digest in self._seen:
            return self._reason
        self._seen.add(digest)
        return None
