"""Selects a download backend by name; wraps img2dataset's downloader as one of them."""

from __future__ import annotations

import io
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.response import addinfourl

import pyarrow as pa

from etl.download.base import Backend, BackendName, Fetched, FetchOptions
from etl.download.errors import PrivateAddressError
from etl.download.native import NativeBackend
from etl.download.resolve import Resolver
from etl.download.robots import OPT_OUT_DIRECTIVES
from etl.download.safe_http import HttpClient, read_body, split_url

T = TypeVar("T")


def make_backend(name: BackendName, options: FetchOptions) -> Backend:
    """The backend with this name."""
    match name:
        case "native":
            return NativeBackend(options)
        case "img2dataset":
            return Img2DatasetBackend(options)


LOST = "lost_by_downloader"


def opener(options: FetchOptions) -> urllib.request.OpenerDirector:
    """An opener for http and https only, for `urllib.request.install_opener`.

    img2dataset downloads with `urllib.request.urlopen`, which lets a process install another
    opener. This one follows redirects as urllib does, and sends each request by our safe client.
    """
    director = urllib.request.OpenerDirector()
    for handler in (
        _SafeHandler(options),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


class _SafeHandler(urllib.request.BaseHandler):
    def __init__(self, options: FetchOptions) -> None:
        self._limits = options.limits
        self._client = HttpClient(
            resolver=Resolver(allow_private=options.limits.allow_private),
            timeout=options.timeout,
            per_host=options.per_host,
            headers={"Accept-Encoding": "identity"},
        )

    def http_open(self, request: urllib.request.Request) -> addinfourl:
        """Send one request; a response that urllib will not return has no body."""
        url = split_url(request.full_url)
        until = time.monotonic() + self._limits.deadline
        headers = dict(request.header_items())
        try:
            with self._client.get(url, until=until, headers=headers) as response:
                valid = 200 <= response.status < 300
                body = read_body(response, self._limits.max_bytes) if valid else b""
        except PrivateAddressError as error:
            raise urllib.error.URLError(error) from None
        fields: Any = response.headers  # has a Message's methods, as far as they are called
        found: Any = addinfourl(io.BytesIO(body), fields, request.full_url, response.status)
        found.msg = response.reason
        return found

    https_open = http_open


class Img2DatasetBackend:
    """img2dataset's downloader, called in-process with the defaults of its own command.

    Its command starts process pools and its Ray distributor discards the status of a shard, so
    neither is used: one call of its `Downloader` is one batch, every row is looked up in the
    result, and missing ones are retried once before they are dropped. Bytes are stored as served
    (its resizer would re-encode them, without the EXIF orientation).
    """

    def __init__(self, options: FetchOptions) -> None:
        # Importing it takes seconds and hundreds of megabytes, so only actors do. One of its
        # dependencies checks a package index for updates on import unless disabled.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        from img2dataset.downloader import Downloader  # noqa: PLC0415
        from img2dataset.resizer import Resizer  # noqa: PLC0415

        urllib.request.install_opener(opener(options))
        self._options = options
        self._downloader = Downloader
        self._resizer = Resizer(256, "no", False, disable_all_reencoding=True)

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """Download a batch; rows for which img2dataset returns nothing are retried once."""
        found = self._attempt(dict(enumerate(urls)))
        missing = {row: url for row, url in enumerate(urls) if row not in found}
        if missing:
            found.update(self._attempt(missing))
        lost = Fetched(reason=LOST)
        return [found.get(row, lost) for row in range(len(urls))]

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """See `Backend.stream`."""
        for index, fetched in enumerate(self.fetch(urls)):
            yield finish(index, fetched)

    def _attempt(self, urls: dict[int, str]) -> dict[int, Fetched]:
        """Download one of img2dataset's shards; contains only the rows that it returned."""
        rows = list(urls)
        collector = _Collector()
        with tempfile.TemporaryDirectory(prefix="mmloom-") as folder:
            shard = Path(folder) / "urls.arrow"
            table = pa.table({"url": pa.array(urls.values(), pa.string())})
            with shard.open("wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
            download = self._downloader(
                sample_writer_class=lambda *_: collector,
                resizer=self._resizer,
                thread_count=self._options.threads,
                save_caption=False,
                extract_exif=False,
                output_folder=folder,
                column_list=["url"],
                timeout=self._options.timeout,
                number_sample_per_shard=max(2, len(rows)),  # its log10 determines the keys' width
                oom_shard_count=5,
                compute_hash=None,
                verify_hash_type=None,
                encode_format="jpg",
                retries=self._options.retries,
                user_agent_token=self._options.user_agent,
                disallowed_header_directives=OPT_OUT_DIRECTIVES,
            )
            download((0, str(shard)))  # its result for the shard says less than the rows do
        return {rows[key]: one for key, one in collector.found.items()}


class _Collector:
    """Replaces img2dataset's sample writer; collects what it would write."""

    def __init__(self) -> None:
        self.found: dict[int, Fetched] = {}

    def write(self, img_str: bytes | None, key: str, _caption: str | None, meta: Any) -> None:  # noqa: ANN401
        """Collect one sample; in shard 0 the key is the row's number."""
        if meta["status"] == "success":
            self.found[int(key)] = Fetched(data=img_str)
        else:
            message = str(meta["error_message"])
            self.found[int(key)] = Fetched(reason=reason_of(message), detail=message)

    def close(self) -> None:
        """Nothing to close."""


_REASONS = (
    (r"X-Robots-Tag", "opted_out"),
    (r"private address", "private_address"),
    (r"larger than", "body_too_large"),
    (r"[Cc]ontent-[Ee]ncoding", "unknown_encoding"),
    (r"infinite loop", "redirect_loop"),
    (r"timed out", "timeout"),
    (r"[Ii]ncomplete", "incomplete_body"),
    (r"[Tt]emporary failure in name resolution", "dns_temporary"),
    (r"[Nn]ame or service|name resolution|nodename|No address associated", "dns_failure"),
    (r"CERTIFICATE|SSL|TLS", "tls_failure"),
    (r"refused|[Uu]nreachable|No route|reset by peer|closed connection|Broken pipe", "unreachable"),
    (r"bad URL|unknown url type|no host|control characters|nonnumeric port", "bad_url"),
)


def reason_of(message: str) -> str:
    """The drop reason for an error message, such as `http_404`, `timeout` or `unreachable`."""
    if status := re.search(r"HTTP Error (\d{3})(?!.*infinite loop)", message, re.DOTALL):
        return f"http_{status[1]}"
    for pattern, reason in _REASONS:
        if re.search(pattern, message):
            return reason
    return "download_failed"
