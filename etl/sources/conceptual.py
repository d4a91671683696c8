"""Lists of image URLs and captions: CC3M, CC12M, SBU, Wukong, CC595K, PixelProse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import (
    BadRecordError,
    Format,
    MediaRef,
    Record,
    pair,
    require_field,
    string_fields,
)
from etl.sources.dialogues import messages
from etl.sources.files import json_rows, parquet_or_json_rows, read_json, text_lines
from etl.sources.tables import csv_rows, two_columns
from etl.storage.schema import PLACEHOLDERS, Turn


def _image_pair(url: str, caption: str, **lineage: str) -> Iterator[Record]:
    if "://" not in url:
        raise BadRecordError(f"want a URL instead of {url!r:.60}")
    yield pair("image", url.strip(), caption.strip(), **lineage)


def tsv_lines(file: Path) -> Iterator[str]:
    """The lines of a tsv, without the header that img2dataset's recipes for CC3M and CC12M prepend.

    Those are `caption TAB url` and `url TAB caption`
    (https://github.com/rom1504/img2dataset, dataset_examples/cc3m.md and cc12m.md).
    """
    for number, line in enumerate(text_lines(file)):
        if number or set(line.lower().split("\t")) != {"caption", "url"}:
            yield line


def cc3m(line: str) -> Iterator[Record]:
    """`caption TAB url` (Train_GCC-training.tsv)."""
    caption, url = two_columns(line, last=True)
    return _image_pair(url, caption)


def cc12m(line: str) -> Iterator[Record]:
    """`url TAB caption` (cc12m.tsv)."""
    url, caption = two_columns(line, last=False)
    return _image_pair(url, caption)


def url_only(line: str) -> Iterator[Record]:
    """A line with a URL and nothing else: an image without a text, to be captioned later."""
    if "://" not in line or len(line.split()) != 1:
        raise BadRecordError(f"want a URL instead of {line!r:.60}")
    media = (MediaRef(kind="image", url=line.strip()),)
    yield Record(turns=(Turn(role="user", text=PLACEHOLDERS["image"]),), media=media)


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


def pixelprose(row: Any) -> Iterator[Record]:  # noqa: ANN401 - a row of parquet
    """PixelProse (arXiv:2406.10328): `{uid, url, vlm_caption, aesthetic_score, …}`."""
    caption = require_field(row, "vlm_caption", str).strip().removeprefix("This image displays:")
    lineage = string_fields(row, "url", "vlm_caption", "status", "exif", "error_message")
    scores = {"aesthetic": row.get("aesthetic_score")}
    for record in _image_pair(require_field(row, "url", str), caption, **lineage):
        yield dataclasses.replace(record, scores=scores)


CC3M = Format(suffixes=(".tsv",), rows=tsv_lines, parse=cc3m, identity="medium")
CC12M = Format(suffixes=(".tsv",), rows=tsv_lines, parse=cc12m, identity="medium")
SBU = Format(suffixes=(".json",), rows=sbu_rows, parse=sbu, identity="medium")
WUKONG = Format(
    suffixes=(".csv",), rows=csv_rows("url", "caption"), parse=wukong, identity="medium"
)
URLS = Format(suffixes=(".txt",), rows=text_lines, parse=url_only, identity="medium")
CC595K = Format(suffixes=(".json",), rows=json_rows, parse=messages)
PIXELPROSE = Format(
    suffixes=(".parquet", ".jsonl"),
    rows=parquet_or_json_rows,
    parse=pixelprose,
    scores=("aesthetic",),
    identity="medium",
)
FORMATS: Mapping[str, Format] = {
    "cc3m": CC3M,
    "cc12m": CC12M,
    "sbu": SBU,
    "wukong": WUKONG,
    "cc595k": CC595K,
    "pixelprose": PIXELPROSE,
    "urls": URLS,
}


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a file with this first content (see `peek`)."""
    if isinstance(content, str):
        first, _, rest = content.partition("\t")
        url_first = "://" in first.split(" ")[0] or first.lower() == "url"
        if rest:
            return "cc12m" if url_first else "cc3m"
        return "urls" if url_first and "," not in first else "wukong"
    first_record = content[0] if isinstance(content, list) and content else None
    if isinstance(first_record, dict) and "vlm_caption" in first_record:
        return "pixelprose"
    return "sbu" if isinstance(content, dict) else "cc595k"
