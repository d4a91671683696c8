"""Exact deduplication over a whole job."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from etl.filters.base import Verdict


class FirstSeen:
    """Drops every row whose key an earlier row had. Has state: show it the batches in input order.

    The order makes it deterministic: the earliest input row stays, whatever order downloads ended
    in. Holds 16 bytes of digest per distinct key (about 100 in Python's memory).

    Args:
        column: the key's column (string); null is no key and is kept.
        reason: why later rows are dropped.
    """

    def __init__(self, column: str, reason: str) -> None:
        self._column = column
        self._reason = reason
        self._seen: set[bytes] = set()

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge the next batch."""
        return Verdict(reasons=[self._judge(key) for key in table[self._column].to_pylist()])

    def _judge(self, key: str | None) -> str | None:
        if key is None:
            return None
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if digest in self._seen:
            return self._reason
        self._seen.add(digest)
        return None
