"""Lists of videos and captions: WebVid, MSR-VTT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair, take
from etl.sources.files import read_json
from etl.sources.tables import csv_rows


def webvid(row: dict[str, str]) -> Iterator[Record]:
    """WebVid: `videoid, contentUrl, duration, page_dir, name`."""
    if not row["contentUrl"]:
        raise BadRecordError("no contentUrl")
    lineage = {name: row[name] for name in ("videoid", "duration", "page_dir") if row.get(name)}
    yield pair("video", row["contentUrl"].strip(), row["name"].strip(), **lineage)


def msr_vtt_rows(file: Path) -> list[tuple[Any, Any]]:
    """MSR-VTT's sentences, each with what is told of its video.

    Raises:
        UserError: the file has no videos and sentences.
    """
    found = read_json(file)
    if not isinstance(found, dict) or not {"videos", "sentences"} <= set(found):
        raise UserError(f"{file}: want an object with videos and sentences")
    videos = {video["video_id"]: video for video in found["videos"]}
    return [(one, videos.get(one.get("video_id"))) for one in found["sentences"]]


def msr_vtt(row: tuple[Any, Any]) -> Iterator[Record]:
    """MSR-VTT: `{caption, video_id, sen_id}`; the clips are files `video0.mp4` and so on."""
    sentence, video = row
    name = take(sentence, "video_id", str)
    if video is None:
        raise BadRecordError(f"no video has the id {name!r}")
    lineage = {key: str(video[key]) for key in ("split", "category") if key in video}
    yield pair("video", f"{name}.mp4", take(sentence, "caption", str).strip(), **lineage)


WEBVID = Format(suffixes=(".csv",), rows=csv_rows("contentUrl", "name"), parse=webvid)
MSR_VTT = Format(suffixes=(".json",), rows=msr_vtt_rows, parse=msr_vtt, together=True)


def guess(seen: Any) -> str:  # noqa: ANN401 - parsed JSON, or a line
    """The format of which a file is that begins so."""
    return "webvid" if isinstance(seen, str) else "msr-vtt"
