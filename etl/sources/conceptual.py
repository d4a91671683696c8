"""Lists of image URLs and captions other than parquet: CC3M, CC12M, SBU, Wukong, CC595K."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair
from etl.sources.dialogues import llava
from etl.sources.files import json_rows, read_json
from etl.sources.tables import csv_rows, lines, two_columns


def _image_pair(url: str, caption: str, **lineage: str) -> Iterator[Record]:
    if "://" not in url:
        raise BadRecordError(f"want a URL instead of {url!r:.60}")
    yield pair("image", url.strip(), caption.strip(), **lineage)


def cc3m(line: str) -> Iterator[Record]:
    """`caption TAB url` (Train_GCC-training.tsv)."""
    caption, url = two_columns(line, last=True)
    return _image_pair(url, caption)


def cc12m(line: str) -> Iterator[Record]:
    """`url TAB caption` (cc12m.tsv)."""
    url, caption = two_columns(line, last=False)
    return _image_pair(url, caption)


def sbu_rows(file: Path) -> list[tuple[str, str]]:
    """SBU's parallel arrays `image_urls` and `captions`.

    Raises:
        UserError: they are missing, or of unequal length.
    """
    document = read_json(file)
    urls, captions = (
        document.get(name) if isinstance(document, dict) else None
        for name in ("image_urls", "captions")
    )
    if not isinstance(urls, list) or not isinstance(captions, list) or not urls:
        raise UserError(f"{file}: want an object with the lists image_urls and captions")
    if len(urls) != len(captions):
        raise UserError(f"{file}: {len(urls)} image_urls, but {len(captions)} captions")
    return list(zip(urls, captions, strict=True))


def sbu(row: tuple[Any, Any]) -> Iterator[Record]:
    """One URL and its caption."""
    if not all(isinstance(field, str) for field in row):
        raise BadRecordError(f"want a URL and a caption, got {row!r:.60}")
    return _image_pair(*row)


def wukong(row: dict[str, str]) -> Iterator[Record]:
    """A row of `url,caption`."""
    return _image_pair(row["url"], row["caption"])


CC3M = Format(suffixes=(".tsv",), rows=lines, parse=cc3m, identity="medium")
CC12M = Format(suffixes=(".tsv",), rows=lines, parse=cc12m, identity="medium")
SBU = Format(suffixes=(".json",), rows=sbu_rows, parse=sbu, identity="medium")
WUKONG = Format(
    suffixes=(".csv",), rows=csv_rows("url", "caption"), parse=wukong, identity="medium"
)
CC595K = Format(suffixes=(".json",), rows=json_rows, parse=llava)
FORMATS: Mapping[str, Format] = {
    "cc3m": CC3M,
    "cc12m": CC12M,
    "sbu": SBU,
    "wukong": WUKONG,
    "cc595k": CC595K,
}


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a file with this first content (see `peek`)."""
    if isinstance(content, str):
        first, _, rest = content.partition("\t")
        url_first = "://" in first.split(" ")[0]
        return ("cc12m" if url_first else "cc3m") if rest else "wukong"
    return "sbu" if isinstance(content, dict) else "cc595k"
