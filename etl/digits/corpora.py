"""The digits world's videos, sounds, clouds and documents as small lists of URLs with faults.

`webvid.csv`, `wavcaps.json`, `triplets.jsonl` and `mmc4.jsonl` have the published formats of those
corpora. Each list of captioned media has, besides its sound rows, one dead link, one page, one
truncated file and one copy of a medium under another name; of the documents one loses an image, and
one all. `planted_media.json` tells what a job has to find.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.digits.faults import World
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
_IN_DOCUMENT = 3  # images


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a list: its URL's path, the caption, and why a job drops it, if it does."""

    path: str
    caption: str
    reason: str | None = None


def write_corpora(folder: Path, world: World, base_url: str) -> None:
    """Write the lists and all their media.

    Args:
        folder: the world's folder; the files go to its `media/`.
        world: `others` says how many sound rows each list has.
        base_url: where the server serves the media, without a slash at its end.
    """
    truth: dict[str, Any] = {}
    for subject, (name, write) in _LISTS.items():
        rows = list(_rows(folder / "media", subject, world))
        with atomic_file(folder / name) as stream:
            stream.write(write(rows, base_url).encode())
        truth[name] = _truth([row.reason for row in rows])
    documents, reasons = _documents(folder / "media", world, base_url)
    with atomic_file(folder / "mmc4.jsonl") as stream:
        stream.write(_lines(documents).encode())
    truth["mmc4.jsonl"] = _truth(reasons)
    write_json(folder / "planted_media.json", truth)


def _truth(reasons: list[str | None]) -> dict[str, Any]:
    drops = [reason for reason in reasons if reason]
    counts = {reason: drops.count(reason) for reason in dict.fromkeys(drops)}
    return {"rows": len(reasons), "sound": len(reasons) - len(drops), "drops": counts}


def _rows(media: Path, subject: str, world: World) -> Iterator[Row]:
    """The rows of a subject's list; every file that they name is written on the way."""

    def put(path: str, data: bytes) -> str:
        (media / path).parent.mkdir(parents=True, exist_ok=True)
        (media / path).write_bytes(data)
        return path

    def medium(number: int) -> tuple[Medium, str]:
        made = sample(subject, "captions", world.seed, number)
        return made.media[0], made.turns[-1].text

    for number in range(world.others):
        made, caption = medium(number)
        name = f"{subject}/{number:06d}{_SUFFIXES[made.mime]}"
        yield Row(path=put(name, made.data), caption=caption)
    extra = world.others
    made, caption = medium(extra)
    suffix = _SUFFIXES[made.mime]
    yield Row(path=f"{subject}/gone{suffix}", caption=caption, reason="http_404")
    yield Row(path=put(f"{subject}/page.html", PAGE), caption=caption, reason="wrong_type")
    # Half a FLAC file is told from a damaged one by no header, so another sound is looked for.
    while made.mime == "audio/flac":
        extra += 1
        made, caption = medium(extra)
    half = put(f"{subject}/half{_SUFFIXES[made.mime]}", made.data[: len(made.data) // 2])
    yield Row(path=half, caption=caption, reason="truncated")
    first, caption = medium(0)
    copy = put(f"{subject}/copy{_SUFFIXES[first.mime]}", first.data)
    yield Row(path=copy, caption=caption, reason=_COPY[subject])


_COPY = {
    "video": "duplicate_medium",
    "audio": "duplicate_record",
    "points": "duplicate_record",
}
"""Subject → why its job drops the copy of a medium with the same caption."""


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
    media: Path, world: World, base_url: str
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """MMC4's records of as many documents as there are other rows, and of each why it is dropped.

    The last but one has a dead image, the last one nothing but dead images.
    """
    records = []
    (media / "documents").mkdir(parents=True, exist_ok=True)
    for number in range(world.others):
        sentences, images = [], []
        for place in range(_IN_DOCUMENT):
            shown = pair(world.seed, _IN_DOCUMENT * number + place)
            path = f"documents/{number:06d}-{place}.png"
            left = world.others - number
            if not (left == 1 or (left == 2 and place == 1)):
                (media / path).write_bytes(encode(render(shown.scene), "image/png"))
            sentences.append(shown.caption)
            found = {"matched_text_index": place, "matched_sim": 0.3}
            images.append({"image_name": path, "raw_url": f"{base_url}/{path}", **found})
        page = f"{base_url}/documents/{number:06d}.html"
        records.append({"url": page, "text_list": sentences, "image_info": images})
    return records, [None] * (len(records) - 1) + ["http_404"]
