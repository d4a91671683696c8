"""Joins records with their media: each distinct medium is fetched once, whatever shares it.

The distinct media of a unit are fetched and checked as a stream, in the order in which records need
them. A record is complete as soon as its media have arrived, or is dropped for the reason of a
medium that failed; a medium is released after the last record that needs it.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa

from etl.download.base import Backend, Fetched
from etl.filters.records import MEDIA, is_url
from etl.filters.urls import display_url
from etl.media import audio, points, video
from etl.media.decode import normalize_image
from etl.media.embedded import EmbeddedMedia, is_embedded
from etl.media.faces import Box
from etl.media.image import ImageLimits
from etl.media.local import LocalMedia, decode_base64
from etl.storage.schema import PLACEHOLDER_PATTERN, Medium, sha256

T = TypeVar("T")

STEPS = ("download", "decode")
"""The steps that media go through, in order."""

_MAX_DETAIL = 500  # characters of an exception

OnLost = Literal["drop", "remove"]
"""What to do with a record one of whose media failed.

`drop`: drop the record, for the reason of that medium. `remove`: remove the medium's placeholder,
and drop the record only if all of its media failed.
"""


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """Where a job finds its media, and which it keeps.

    `locations` are folders and archives in which file names are looked up, or one http(s) address
    that is prefixed to them. `input_folder` is where files with embedded media are
    (`etl.media.embedded`). `image_size` is the maximum of an image's shorter side, in pixels.
    """

    locations: tuple[str, ...] = ()
    input_folder: Path | None = None
    on_lost: OnLost = "drop"
    image_size: int | None = None
    video: video.VideoLimits = field(default_factory=video.VideoLimits)
    audio: audio.AudioLimits = field(default_factory=audio.AudioLimits)
    points: points.PointsLimits = field(default_factory=points.PointsLimits)

    def paths(self) -> list[Path]:
        """The folders and archives."""
        return [Path(location) for location in self.locations if not is_url(location)]

    def prefix(self) -> str | None:
        """The http(s) address, if there is one."""
        return next(filter(is_url, self.locations), None)


class MediaFetcher:
    """Streams the media that records name: data URLs, local or embedded files, and http(s) URLs.

    Args:
        web: downloads http(s) URLs.
        options: where file names are looked up.
        max_bytes: the maximum size of a local file or data URL.
    """

    def __init__(self, web: Backend, options: MediaOptions, *, max_bytes: int) -> None:
        self._web = web
        self._prefix = options.prefix()
        paths = options.paths()
        self._local = LocalMedia(paths, max_bytes=max_bytes) if paths else None
        folder = options.input_folder
        self._embedded = EmbeddedMedia(folder, max_bytes=max_bytes) if folder else None
        self._max_bytes = max_bytes

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """See `Backend.stream`."""
        on_web = {index: found for index, url in enumerate(urls) if (found := self._web_url(url))}
        indices = list(on_web)
        results = self._web.stream(
            list(on_web.values()), lambda number, fetched: finish(indices[number], fetched)
        )
        for index, url in enumerate(urls):
            yield next(results) if index in on_web else finish(index, self._read(url))

    def _web_url(self, url: str) -> str | None:
        if url.startswith("data:") or is_embedded(url):
            return None
        if is_url(url):
            return url
        if self._local or not self._prefix:
            return None
        return f"{self._prefix.rstrip('/')}/{quote(url.lstrip('/'))}"

    def _read(self, url: str) -> Fetched:
        if url.startswith("data:"):
            return self._decode_data_url(url)
        if self._embedded and is_embedded(url):
            return self._embedded.read(url)
        if self._local:
            return self._local.read(url)
        return Fetched(reason="no_media", detail=f"{url}: a file name, but no --media is given")

    def _decode_data_url(self, url: str) -> Fetched:
        head, _, body = url.partition(",")
        if len(body) > 3 * self._max_bytes:  # base64 needs 4/3, percent signs at most 3
            return Fetched(reason="body_too_large")
        try:
            is_base64 = head.replace(" ", "").lower().endswith(";base64")
            data = decode_base64(body) if is_base64 else unquote_to_bytes(body)
        except binascii.Error as error:
            return Fetched(reason="bad_url", detail=f"{head}: {error}")
        if len(data) > self._max_bytes:
            return Fetched(reason="body_too_large")
        return Fetched(data=data)


@dataclass(frozen=True, kw_only=True)
class CheckedMedium:
    """A valid medium, or the step at which it failed, the drop reason, and a detail.

    `phash` is an image's perceptual hash, `notes` are added to the record's lineage, `scores` are
    measured properties.
    """

    medium: Medium | None = None
    phash: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    step: str = ""
    reason: str = ""
    detail: str | None = None


MediumKey = tuple[str, str, float | None, float | None]
"""Identifies a medium: kind, URL or file name, and the segment's start and length."""


def check_medium(
    key: MediumKey,
    fetched: Fetched,
    options: MediaOptions,
    image: ImageLimits,
    faces: Sequence[Box] = (),
) -> CheckedMedium:
    """Decode a fetched medium and check it against the limits; raises nothing.

    `faces` are boxes to blur in an image, see `etl.media.faces`.
    """
    try:
        return _check_medium(key, fetched, options, image, faces)
    except Exception as error:  # whatever a decoder raises, it concerns this medium only
        detail = f"{type(error).__name__}: {error}"[:_MAX_DETAIL]
        return CheckedMedium(step="decode", reason="decoder_error", detail=detail)


def _check_medium(
    key: MediumKey,
    fetched: Fetched,
    options: MediaOptions,
    image: ImageLimits,
    faces: Sequence[Box],
) -> CheckedMedium:
    kind, _, start, length = key
    data = fetched.data
    if data is None:
        return CheckedMedium(step="download", reason=fetched.reason or "", detail=fetched.detail)
    result: Any
    match kind:
        case "image":
            result = normalize_image(data, image, options.image_size, faces)
            if not isinstance(result, str):
                return CheckedMedium(medium=result.medium, phash=result.phash, notes=result.notes)
        case "video":
            result = video.probe(data, options.video)
        case "audio":
            result = audio.probe(data, options.audio, start=start, length=length)
        case "points":
            result = points.probe(data, options.points)
        case _:
            raise ValueError(f"unknown kind of medium {kind!r}")
    if isinstance(result, str):
        return CheckedMedium(step="decode", reason=result)
    info = dict(vars(result))
    stored = info.pop("data", None) or data
    scores, notes = info.pop("scores", {}), info.pop("notes", {})
    medium = Medium(kind=kind, data=stored, sha256=sha256(stored), **info)
    return CheckedMedium(medium=medium, scores=scores, notes=notes)


def with_media(table: pa.Table) -> pa.Table:
    """Candidates with a column `media`; if it is missing, each row has the image at `url`."""
    if "media" in table.column_names:
        return table
    images = [
        [{"kind": "image", "url": url, "start": None, "length": None}] if url else []
        for url in table["url"].to_pylist()
    ]
    return table.append_column("media", pa.array(images, MEDIA))


@dataclass(frozen=True, kw_only=True)
class GatheredRecord:
    """A candidate that is kept, without the placeholders of failed media, and its valid media."""

    row: Mapping[str, Any]
    media: tuple[CheckedMedium, ...]


def gather(
    rows: Sequence[Mapping[str, Any]],
    stream: Callable[[Sequence[MediumKey]], Iterator[CheckedMedium]],
    on_lost: OnLost,
) -> Iterator[GatheredRecord | CheckedMedium]:
    """Join records with their media; yields each record, or the failed medium that drops it.

    Args:
        rows: candidates with `turns`, `media` and `lineage`.
        stream: fetches and checks distinct media, in order.
        on_lost: what to do with a record one of whose media failed.
    """
    keys_of = [[_key(ref) for ref in row["media"]] for row in rows]
    last_use = {key: number for number, keys in enumerate(keys_of) for key in keys}
    order = list(dict.fromkeys(key for keys in keys_of for key in keys))
    arriving = zip(order, stream(order), strict=True)
    arrived: dict[MediumKey, CheckedMedium] = {}
    for number, (row, keys) in enumerate(zip(rows, keys_of, strict=True)):
        while not all(key in arrived for key in keys):
            key, checked = next(arriving)
            arrived[key] = checked
        yield _join(row, [arrived[key] for key in keys], on_lost)
        for key in set(keys):
            if last_use[key] == number:
                del arrived[key]


def _key(ref: Mapping[str, Any]) -> MediumKey:
    return (ref["kind"], ref["url"], ref["start"], ref["length"])


def _join(
    row: Mapping[str, Any], media: Sequence[CheckedMedium], on_lost: OnLost
) -> GatheredRecord | CheckedMedium:
    failed = [one for one in media if one.medium is None]
    if not failed:
        return GatheredRecord(row=row, media=tuple(media))
    if on_lost == "drop" or len(failed) == len(media):
        return min(failed, key=lambda one: STEPS.index(one.step))
    valid = tuple(one for one in media if one.medium)
    return GatheredRecord(row=_without_failed(row, media), media=valid)


def _without_failed(row: Mapping[str, Any], media: Sequence[CheckedMedium]) -> dict[str, Any]:
    """A record without the placeholders of failed media; lineage lists these and their reasons."""
    remaining = iter(media)
    turns = []
    for turn in row["turns"]:
        text, end = "", 0
        for match in PLACEHOLDER_PATTERN.finditer(turn["text"]):
            failed = next(remaining).medium is None
            text += turn["text"][end : match.start() if failed else match.end()]
            end = match.end()
            if failed and turn["text"][end : end + 1].isspace():
                end += 1
        turns.append({**turn, "text": text + turn["text"][end:]})
    lost = [
        f"{display_url(ref['url'])} {one.reason}"
        for ref, one in zip(row["media"], media, strict=True)
        if one.medium is None
    ]
    lineage = {**json.loads(row["lineage"]), "lost_media": json.dumps(lost)}
    return {**row, "turns": turns, "lineage": json.dumps(lineage)}
