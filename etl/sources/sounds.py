"""Lists of sounds and captions or transcripts: AudioCaps, WavCaps, Clotho, AISHELL."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etl.sources.base import BadRecordError, Format, Record, pair, require_field
from etl.sources.files import rows_in, text_lines
from etl.sources.tables import csv_rows, number

CLIP_SECONDS = 10.0
"""Length of AudioSet's, and so AudioCaps', segment of each video (Kim et al. 2019, §3)."""

FILE_NAME = "{youtube_id}_{start_time}.wav"
"""Default name of AudioCaps' files, with a row's columns in braces."""


def audio_caps(name: str, *, cut: bool) -> Format:
    """AudioCaps: `audiocap_id, youtube_id, start_time, caption`; it publishes no sounds.

    Args:
        name: the files' names, with a row's columns in braces.
        cut: whether they are whole recordings, of which the 10 s from `start_time` are used.
    """

    def parse(row: dict[str, str]) -> Iterator[Record]:
        try:
            file = name.format(**row)
        except (KeyError, IndexError, ValueError):
            raise BadRecordError(f"{name!r} names no columns of {', '.join(row)}") from None
        start = number(row["start_time"], "start_time")
        lineage = {key: row[key] for key in ("audiocap_id", "youtube_id") if row.get(key)}
        record = pair("audio", file, row["caption"].strip(), start_time=str(start), **lineage)
        if cut:
            if start is None:
                raise BadRecordError("no start_time")
            (ref,) = record.media
            segment = dataclasses.replace(ref, start=start, length=CLIP_SECONDS)
            record = dataclasses.replace(record, media=(segment,))
        yield record

    rows = csv_rows("youtube_id", "start_time", "caption")
    return Format(suffixes=(".csv",), rows=rows, parse=parse, group_by_medium=True)


def wav_caps(*, local: bool) -> Format:
    """WavCaps: `data: [{id, caption, duration, download_link}]`.

    Args:
        local: whether the sounds are files, `ID.flac` as in its archives, rather than downloads
            from `download_link`.
    """

    def parse(row: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
        name = str(require_field(row, "id"))
        url = row.get("download_link")
        if local or not url:
            stem = name.removesuffix(".wav")  # AudioSet's ids are file names
            url = f"{stem}.flac"
        lineage = {key: str(row[key]) for key in ("duration", "author") if row.get(key)}
        caption = require_field(row, "caption", str).strip()
        yield pair("audio", url, caption, original_id=name, **lineage)

    return Format(suffixes=(".json",), rows=rows_in("data"), parse=parse)


def clotho(row: dict[str, str]) -> Iterator[Record]:
    """Clotho: `file_name, caption_1 … caption_5`; each caption is a record of its own."""
    captions = [row[name] for name in sorted(row) if name.startswith("caption_")]
    for caption in captions:
        if caption.strip():
            yield pair("audio", row["file_name"], caption.strip())


_UTTERANCE = re.compile(r"[A-Z]{1,4}\d+(?:[A-Z]\d+)+")
"""An utterance's id: BAC009S0002W0122 (AISHELL-1), IC0001W0001 or T0055G0001S0001 (AISHELL-2)."""
_BETWEEN = re.compile(r"(?<=[\u3400-\u9fff]) +(?=[\u3400-\u9fff])")


def aishell(line: str) -> Iterator[Record]:
    """AISHELL-1 and -2: an utterance's id, blanks, the transcript; the sound is `ID.wav`.

    AISHELL-1 has blanks between words, which Chinese does not; they are removed.
    """
    name, *rest = line.split(maxsplit=1)
    if not rest or not _UTTERANCE.fullmatch(name):
        raise BadRecordError(
            f"want an utterance's id (BAC009S0002W0122) and its transcript; got {line!r:.60}"
        )
    yield pair("audio", f"{name}.wav", _BETWEEN.sub("", rest[0].strip()))


CLOTHO = Format(suffixes=(".csv",), rows=csv_rows("file_name", "caption_1"), parse=clotho)
AISHELL = Format(suffixes=(".txt",), rows=text_lines, parse=aishell)


def formats(name: str = FILE_NAME, *, cut: bool = False, local: bool = False) -> dict[str, Format]:
    """All formats by name; see `audio_caps` and `wav_caps` for the arguments."""
    return {
        "audiocaps": audio_caps(name, cut=cut),
        "wavcaps": wav_caps(local=local),
        "clotho": CLOTHO,
        "aishell": AISHELL,
    }


FORMATS: Mapping[str, Format] = formats()


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a file with this first content (see `peek`)."""
    if not isinstance(content, str):
        return "wavcaps"
    if "youtube_id" in content:
        return "audiocaps"
    return "clotho" if "caption_1" in content else "aishell"
