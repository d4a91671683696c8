"""Lists of videos and captions: WebVid, MSR-VTT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair, require_field
from etl.sources.files import plain_suffix, read_json, table_rows
from etl.sources.tables import csv_rows


def webvid_rows(file: Path) -> Iterator[Any]:
    """WebVid's csv, or its parquet on Hugging Face, in which `videoid` is a number.

    Raises:
        UserError: the file is neither, or lacks a column.
    """
    if plain_suffix(file) == ".parquet":
        yield from table_rows(file)
    else:
        yield from csv_rows("contentUrl", "name")(file)


def webvid(row: dict[str, Any]) -> Iterator[Record]:
    """WebVid: `videoid, contentUrl, duration, page_dir, name`."""
    url, caption = (require_field(row, name, str) for name in ("contentUrl", "name"))
    if not url:
        raise BadRecordError("no contentUrl")
    lineage = {
        name: str(row[name]) for name in ("videoid", "duration", "page_dir") if row.get(name)
    }
    yield pair("video", url.strip(), caption.strip(), **lineage)


def msr_vtt_rows(file: Path) -> list[tuple[Any, Any]]:
    """MSR-VTT's sentences, each with its video's metadata.

    Raises:
        UserError: the file has no videos and sentences.
    """
    document = read_json(file)
    if not isinstance(document, dict) or not {"videos", "sentences"} <= set(document):
        raise UserError(f"{file}: want an object with videos and sentences")
    lists = [document[name] for name in ("videos", "sentences")]
    if not all(isinstance(entries, list) for entries in lists):
        raise UserError(f"{file}: want lists of videos and sentences")
    videos = {
        str(video["video_id"]): video
        for video in lists[0]
        if isinstance(video, dict) and "video_id" in video
    }
    return [
        (one, videos.get(str(one.get("video_id"))) if isinstance(one, dict) else None)
        for one in lists[1]
    ]


def msr_vtt(row: tuple[Any, Any]) -> Iterator[Record]:
    """MSR-VTT: `{caption, video_id, sen_id}`; the clips are files `video0.mp4` and so on."""
    sentence, video = row
    name = require_field(sentence, "video_id", str)
    if video is None:
        raise BadRecordError(f"no video has the id {name!r}")
    lineage = {key: str(video[key]) for key in ("split", "category") if key in video}
    yield pair("video", f"{name}.mp4", require_field(sentence, "caption", str).strip(), **lineage)


WEBVID = Format(suffixes=(".csv", ".parquet"), rows=webvid_rows, parse=webvid, identity="medium")
MSR_VTT = Format(suffixes=(".json",), rows=msr_vtt_rows, parse=msr_vtt, group_by_medium=True)
FORMATS: Mapping[str, Format] = {"webvid": WEBVID, "msr-vtt": MSR_VTT}


def detect_format(content: Any) -> str:  # noqa: ANN401 - parsed JSON, or a line
    """The name of the format of a file with this first content (see `peek`)."""
    return "webvid" if isinstance(content, str | list) else "msr-vtt"
