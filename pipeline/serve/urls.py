"""URLs in requests: fetched as the ETL fetches those of its corpora, so none leads inside."""

from __future__ import annotations

from etl.download.base import DownloadLimits, FetchOptions
from etl.download.native import NativeBackend
from pipeline.serve.requests import Fetch


def url_fetcher(*, max_bytes: int, seconds: float, allow_private: bool) -> Fetch:
    """Return what gets the bytes of a URL; robots.txt and opt-out headers are honoured.

    Args:
        max_bytes: of a body.
        seconds: for the whole of it.
        allow_private: do not refuse private and loopback addresses.

    Returns:
        A function that raises ValueError, with the reason, where it gets none.
    """
    limits = DownloadLimits(max_bytes=max_bytes, deadline=seconds, allow_private=allow_private)
    options = FetchOptions(
        threads=1, timeout=min(10.0, seconds), retries=0, user_agent=None, limits=limits
    )
    backend = NativeBackend(options)

    def fetch(url: str) -> bytes:
        [found] = backend.fetch([url])
        if found.data is None:
            raise ValueError(found.detail or found.reason)
        return found.data

    return fetch
