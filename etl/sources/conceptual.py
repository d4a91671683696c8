"""Lists of images and captions that are no parquet: CC3M, CC12M, SBU, Wukong, CC595K."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair
from etl.sources.dialogues import llava
from etl.sources.files import json_rows, read_json
from etl.sources.tables import csv_rows, lines, two_columns


def _shown(url: str, caption: str, **lineage: str) -> Iterator[Record]:
    if "://" not in url:
        raise BadRecordError(f"want a URL where {url!r:.60} stands")
    yield pair("image", url.strip(), caption.strip(), **lineage)


def cc3m(line: str) -> Iterator[Record]:
    """`caption TAB url` (Train_GCC-training.tsv)."""
    caption, url = two_columns(line, last=True)
    return _shown(url, caption)


def cc12m(line: str) -> Iterator[Record]:
    """`url TAB caption` (cc12m.tsv)."""
    url, caption = two_columns(line, last=False)
    return _shown(url, caption)


def sbu_rows(file: Path) -> list[tuple[str, str]]:
    """SBU's parallel arrays `image_urls` and `captions`.

    Raises:
        UserError: they are not there, or of unequal length.
    """
    found = read_json(file)
    urls, captions = (
        found.get(name) if isinstance(found, dict) else None for name in ("image_urls", "captions")
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
    return _shown(*row)


def wukong(row: dict[str, str]) -> Iterator[Record]:
    """A row of `url,caption`."""
    return _shown(row["url"], row["caption"])


CC3M = Format(suffixes=(".tsv",), rows=lines, parse=cc3m)
CC12M = Format(suffixes=(".tsv",), rows=lines, parse=cc12m)
SBU = Format(suffixes=(".json",), rows=sbu_rows, parse=sbu)
WUKONG = Format(suffixes=(".csv",), rows=csv_rows("url", "caption"), parse=wukong)
CC595K = Format(suffixes=(".json",), rows=json_rows, parse=llava)


def guess(seen: Any) -> str:  # noqa: ANN401
    """The format of which a file is that begins so."""
    if isinstance(seen, str):
        before, _, after = seen.partition("\t")
        url_first = "://" in before.split(" ")[0]
        return ("cc12m" if url_first else "cc3m") if after else "wukong"
    return "sbu" if isinstance(seen, dict) else "cc595k"
