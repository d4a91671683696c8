"""The digits world's videos, sounds, clouds and documents as small URL lists with planted faults.

`webvid.csv`, `wavcaps.json`, `triplets.jsonl` and `mmc4.jsonl` have the published formats of those
corpora. Each list of captioned media has, besides its valid rows, one dead link, one HTML page, one
truncated file and one copy of a medium at another URL; one document loses an image, and one all of
them. `planted_media.json` lists the drops that a job must report.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.digits.faults import WorldSize
from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.digits.subjects import sample
from etl.storage.atomic import atomic_file, write_json
from etl.storage.schema import Medium

PAGE = b"<!doctype html><title>moved</title><p>What was here has moved.</p>\n"

_SUFFIXES = {
    "video/mp4": ".mp4",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "application/x-npy": ".npy",
}
_IMAGES_PER_DOCUMENT = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a list: the path of its URL, the caption, and the expected drop reason, if any."""

    path: str
    caption: str
    reason: str | None = None


def write_corpora(folder: Path, size: WorldSize, base_url: str) -> None:
    """Write the lists and all their media.

    Args:
        folder: the world's folder; the files go to its `media/`.
        size: `others` is the number of valid rows in each list.
        base_url: the server's address, without a trailing slash.
    """
    expected: dict[str, Any] = {}
    for subject, (name, write) in _LISTS.items():
        rows = list(_rows(folder / "media", subject, size))
        with atomic_file(folder / name) as stream:
            stream.write(write(rows, base_url).encode())
        expected[name] = _expected([row.reason for row in rows])
    documents, reasons = _documents(folder / "media", size, base_url)
    with atomic_file(folder / "mmc4.jsonl") as stream:
        stream.write(_lines(documents).encode())
    expected["mmc4.jsonl"] = _expected(reasons)
    write_json(folder / "planted_media.json", expected)


def _expected(reasons: list[str | None]) -> dict[str, Any]:
    drops = [reason for reason in reasons if reason]
    counts = {reason: drops.count(reason) for reason in dict.fromkeys(drops)}
    return {"rows": len(reasons), "valid": len(reasons) - len(drops), "drops": counts}


def _rows(media: Path, subject: str, size: WorldSize) -> Iterator[Row]:
    """The rows of a subject's list; writes their files."""

    def put(path: str, data: bytes) -> str:
        (media / path).parent.mkdir(parents=True, exist_ok=True)
        (media / path).write_bytes(data)
        return path

    def medium(number: int) -> tuple[Medium, str]:
        record = sample(subject, "captions", size.seed, number)
        return record.media[0], record.turns[-1].text

    for number in range(size.others):
        found, caption = medium(number)
        name = f"{subject}/{number:06d}{_SUFFIXES[found.mime]}"
        yield Row(path=put(name, found.data), caption=caption)
    extra = size.others
    found, caption = medium(extra)
    suffix = _SUFFIXES[found.mime]
    yield Row(path=f"{subject}/gone{suffix}", caption=caption, reason="http_404")
    yield Row(path=put(f"{subject}/page.html", PAGE), caption=caption, reason="wrong_type")
    # Half a FLAC file cannot be distinguished from a damaged one, so use another format.
    while found.mime == "audio/flac":
        extra += 1
        found, caption = medium(extra)
    half = put(f"{subject}/half{_SUFFIXES[found.mime]}", found.data[: len(found.data) // 2])
    yield Row(path=half, caption=caption, reason="truncated")
    first, caption = medium(0)
    copy = put(f"{subject}/copy{_SUFFIXES[first.mime]}", first.data)
    yield Row(path=copy, caption=caption, reason=_COPY[subject])


_COPY = {
    "video": "duplicate_medium",
    "audio": "duplicate_record",
    "points": "duplicate_record",
}
"""Subject → the drop reason of a medium's copy with the same caption."""


def _webvid(rows: list[Row], base_url: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
    for number, row in enumerate(rows):
        url = f"{base_url}/{row.path}"
        writer.writerow([number, url, "PT00H00M02S", "digits", row.caption])
    return stream.getvalue()


def _wavcaps(rows: list[Row], base_url: str) -> str:
    data = [
        {"id": str(number), "caption": row.caption, "download_link": f"{base_url}/{row.path}"}
        for number, row in enumerate(rows)
    ]
    return json.dumps({"num_captions_per_audio": 1, "data": data}, indent=2) + "\n"


def _triplets(rows: list[Row], base_url: str) -> str:
    return _lines([{"points": f"{base_url}/{row.path}", "caption": row.caption} for row in rows])


_LISTS: Mapping[str, tuple[str, Callable[[list[Row], str], str]]] = {
    "video": ("webvid.csv", _webvid),
    "audio": ("wavcaps.json", _wavcaps),
    "points": ("triplets.jsonl", _triplets),
}


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _documents(
    media: Path, size: WorldSize, base_url: str
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """`size.others` documents in MMC4's format, and the expected drop reason of each.

    The last but one has one dead image link, the last one has only dead links.
    """
    records = []
    (media / "documents").mkdir(parents=True, exist_ok=True)
    for number in range(size.others):
        sentences, images = [], []
        for index in range(_IMAGES_PER_DOCUMENT):
            shown = pair(size.seed, _IMAGES_PER_DOCUMENT * number + index)
            path = f"documents/{number:06d}-{index}.png"
            remaining = size.others - number
            if not (remaining == 1 or (remaining == 2 and index == 1)):
                (media / path).write_bytes(encode(render(shown.scene), "image/png"))
            sentences.append(shown.caption)
            match = {"matched_text_index": index, "matched_sim": 0.3}
            images.append({"image_name": path, "raw_url": f"{base_url}/{path}", **match})
        page = f"{base_url}/documents/{number:06d}.html"
        records.append({"url": page, "text_list": sentences, "image_info": images})
    return records, [None] * (len(records) - 1) + ["http_404"]
