"""The download backends by name, and the one that img2dataset is."""

from __future__ import annotations

import os
import re
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from etl.download.base import Backend, BackendName, Fetched, FetchOptions
from etl.download.native import Native
from etl.download.safe_http import opener

T = TypeVar("T")


def make_backend(name: BackendName, options: FetchOptions) -> Backend:
    """The backend of a name."""
    match name:
        case "native":
            return Native(options)
        case "img2dataset":
            return Img2Dataset(options)


LOST = "lost_by_downloader"
OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
"""X-Robots-Tag values that img2dataset's own command honours by default."""


class Img2Dataset:
    """img2dataset's downloader, called in-process with what its own command would give it.

    Its command starts process pools and its Ray distributor discards the status of a shard, so
    neither is used: one call of its `Downloader` is one batch, every one of its rows is looked
    for in what comes back, what is missing is tried once more and then told. Bytes stay as they
    were served (its resizer would encode them anew, without the EXIF orientation).
    """

    def __init__(self, options: FetchOptions) -> None:
        # Imported here since it costs seconds and hundreds of megabytes, which only actors pay.
        # One of its dependencies asks a package index for updates on import, unless told not to.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        from img2dataset.downloader import Downloader  # noqa: PLC0415
        from img2dataset.resizer import Resizer  # noqa: PLC0415

        urllib.request.install_opener(opener(options.bounds))
        self._options = options
        self._downloader = Downloader
        self._resizer = Resizer(256, "no", False, disable_all_reencoding=True)

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """Download a batch; rows that img2dataset says nothing of are tried once more."""
        found = self._attempt(dict(enumerate(urls)))
        missing = {row: url for row, url in enumerate(urls) if row not in found}
        if missing:
            found.update(self._attempt(missing))
        lost = Fetched(reason=LOST)
        return [found.get(row, lost) for row in range(len(urls))]

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """See `Backend.stream`."""
        for place, found in enumerate(self.fetch(urls)):
            yield finish(place, found)

    def _attempt(self, urls: dict[int, str]) -> dict[int, Fetched]:
        """One of img2dataset's shards; only the rows that it answers for."""
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
                number_sample_per_shard=max(2, len(rows)),  # its log10 sets the keys' width
                oom_shard_count=5,
                compute_hash=None,
                verify_hash_type=None,
                encode_format="jpg",
                retries=self._options.retries,
                user_agent_token=self._options.user_agent,
                disallowed_header_directives=OPT_OUT_DIRECTIVES,
            )
            download((0, str(shard)))  # its own verdict on the shard says less than the rows do
        return {rows[key]: one for key, one in collector.found.items()}


class _Collector:
    """Stands where img2dataset's sample writers do, and keeps what they would write."""

    def __init__(self) -> None:
        self.found: dict[int, Fetched] = {}

    def write(self, img_str: bytes | None, key: str, _caption: str | None, meta: Any) -> None:  # noqa: ANN401
        """Take one sample; in shard 0 the key is the row's number."""
        if meta["status"] == "success":
            self.found[int(key)] = Fetched(data=img_str)
        else:
            message = str(meta["error_message"])
            self.found[int(key)] = Fetched(reason=reason_of(message), detail=message)

    def close(self) -> None:
        """Nothing is open."""


_REASONS = (
    (r"X-Robots-Tag", "opted_out"),
    (r"private address", "private_address"),
    (r"larger than", "body_too_large"),
    (r"infinite loop", "redirect_loop"),
    (r"timed out", "timeout"),
    (r"[Ii]ncomplete", "incomplete_body"),
    (r"[Tt]emporary failure in name resolution", "dns_temporary"),
    (r"[Nn]ame or service|name resolution|nodename|No address associated", "dns_failure"),
    (r"CERTIFICATE|SSL|TLS", "tls_failure"),
    (r"refused|[Uu]nreachable|No route|reset by peer|closed connection|Broken pipe", "unreachable"),
    (r"unknown url type|no host|control characters|nonnumeric port", "bad_url"),
)


def reason_of(message: str) -> str:
    """The class of a download error, such as `http_404`, `timeout` or `unreachable`."""
    if status := re.search(r"HTTP Error (\d{3})(?!.*infinite loop)", message, re.DOTALL):
        return f"http_{status[1]}"
    for pattern, reason in _REASONS:
        if re.search(pattern, message):
            return reason
    return "download_failed"
