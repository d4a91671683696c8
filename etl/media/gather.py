"""From records that name media to records that have them: each medium once, whatever shares it.

A range's distinct media are fetched and checked as a stream, in the order in which records need
them. A record is put together as soon as its media are there, or dropped with the reason of what
it lost; a medium is forgotten after the last record that has it.
"""

from __future__ import annotations

import base64
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
from etl.filters.urls import shown
from etl.media import audio, points, video
from etl.media.decode import finish_picture
from etl.media.faces import Box
from etl.media.image import ImageLimits
from etl.media.local import Places
from etl.storage.schema import PLACEHOLDER_PATTERN, Medium, sha256

T = TypeVar("T")

STEPS = ("download", "decode")
"""What media go through, in order."""

Lost = Literal["drop", "forget"]
"""What becomes of a record that loses a medium.

`drop`: it goes, with the reason of that medium. `forget`: the placeholder goes, and the record
only with the last of its media.
"""


@dataclass(frozen=True, kw_only=True)
class MediaPlan:
    """How a job comes by its media, and which it keeps.

    `places` are folders and archives in which names are looked up, or one http(s) address before
    which they are put. `size` is the longest that an image's shorter side may be, in pixels.
    """

    places: tuple[str, ...] = ()
    lost: Lost = "drop"
    size: int | None = None
    video: video.VideoLimits = field(default_factory=video.VideoLimits)
    audio: audio.AudioLimits = field(default_factory=audio.AudioLimits)
    points: points.PointsLimits = field(default_factory=points.PointsLimits)

    def local(self) -> list[Path]:
        """The folders and archives."""
        return [Path(place) for place in self.places if not is_url(place)]

    def prefix(self) -> str | None:
        """The address, if names are on the web."""
        return next(filter(is_url, self.places), None)


class Anywhere:
    """Streams whatever records may name: data URLs, local files, and the web.

    Args:
        web: downloads http(s) URLs.
        plan: where names are looked up.
        max_bytes: the largest local file or data URL.
    """

    def __init__(self, web: Backend, plan: MediaPlan, *, max_bytes: int) -> None:
        self._web = web
        self._prefix = plan.prefix()
        self._places = Places(plan.local(), max_bytes=max_bytes) if plan.local() else None
        self._max_bytes = max_bytes

    def stream(self, urls: Sequence[str], finish: Callable[[int, Fetched], T]) -> Iterator[T]:
        """See `Backend.stream`."""
        asked = {place: found for place, url in enumerate(urls) if (found := self._on_web(url))}
        places = list(asked)
        answers = self._web.stream(
            list(asked.values()), lambda number, found: finish(places[number], found)
        )
        for place, url in enumerate(urls):
            yield next(answers) if place in asked else finish(place, self._here(url))

    def _on_web(self, url: str) -> str | None:
        if url.startswith("data:"):
            return None
        if is_url(url):
            return url
        if self._places or not self._prefix:
            return None
        return f"{self._prefix.rstrip('/')}/{quote(url.lstrip('/'))}"

    def _here(self, url: str) -> Fetched:
        if url.startswith("data:"):
            return self._inline(url)
        if self._places:
            return self._places.read(url)
        return Fetched(reason="no_media", detail=f"{url}: no --media to look in")

    def _inline(self, url: str) -> Fetched:
        head, _, body = url.partition(",")
        if len(body) > 3 * self._max_bytes:  # base64 needs 4/3, percent signs at most 3
            return Fetched(reason="body_too_large")
        try:
            coded = head.endswith(";base64")
            data = base64.b64decode(body, validate=True) if coded else unquote_to_bytes(body)
        except binascii.Error as error:
            return Fetched(reason="bad_url", detail=f"{head}: {error}")
        if len(data) > self._max_bytes:
            return Fetched(reason="body_too_large")
        return Fetched(data=data)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sound medium, or the step at which it was lost, the reason, and what more is to be told.

    `phash` is an image's perceptual hash, `notes` what its record's lineage is to tell, `scores`
    what was measured.
    """

    medium: Medium | None = None
    phash: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    step: str = ""
    reason: str = ""
    detail: str | None = None


Key = tuple[str, str, float | None, float | None]
"""What tells media apart: kind, URL or name, and the part's start and length."""


def check_medium(
    key: Key,
    fetched: Fetched,
    plan: MediaPlan,
    image: ImageLimits,
    faces: Sequence[Box] = (),
) -> Found:
    """Decode what was fetched, and keep it if it is sound and within the limits.

    `faces` are boxes in an image, see `etl.media.faces`.
    """
    kind, _, start, length = key
    data = fetched.data
    if data is None:
        return Found(step="download", reason=fetched.reason or "", detail=fetched.detail)
    found: Any
    match kind:
        case "image":
            found = finish_picture(data, image, plan.size, faces)
            if not isinstance(found, str):
                return Found(medium=found.medium, phash=found.phash, notes=found.notes)
        case "video":
            found = video.examine(data, plan.video)
        case "audio":
            found = audio.examine(data, plan.audio, start=start, length=length)
        case "points":
            found = points.examine(data, plan.points)
        case _:
            raise ValueError(f"a medium of kind {kind!r}")
    if isinstance(found, str):
        return Found(step="decode", reason=found)
    facts = dict(vars(found))
    kept = facts.pop("data", None) or data
    scores = facts.pop("scores", {})
    medium = Medium(kind=kind, data=kept, sha256=sha256(kept), **facts)
    return Found(medium=medium, scores=scores)


def with_media(table: pa.Table) -> pa.Table:
    """Candidates with a column `media`; without one, each has the image at `url`."""
    if "media" in table.column_names:
        return table
    images = [
        [{"kind": "image", "url": url, "start": None, "length": None}] if url else []
        for url in table["url"].to_pylist()
    ]
    return table.append_column("media", pa.array(images, MEDIA))


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A candidate that is kept, without the placeholders of what it lost; and all its media."""

    row: Mapping[str, Any]
    found: tuple[Found, ...]


def gather(
    rows: Sequence[Mapping[str, Any]],
    stream: Callable[[Sequence[Key]], Iterator[Found]],
    lost: Lost,
) -> Iterator[Gathered | Found]:
    """Bring records and their media together; for each record, itself or what it was lost for.

    Args:
        rows: candidates with `turns`, `media` and `lineage`.
        stream: what becomes of distinct media, in order.
        lost: what becomes of a record that loses a medium.
    """
    wanted = [[_key(ref) for ref in row["media"]] for row in rows]
    last = {key: number for number, keys in enumerate(wanted) for key in keys}
    order = list(dict.fromkeys(key for keys in wanted for key in keys))
    arriving = zip(order, stream(order), strict=True)
    here: dict[Key, Found] = {}
    for number, (row, keys) in enumerate(zip(rows, wanted, strict=True)):
        while not all(key in here for key in keys):
            key, found = next(arriving)
            here[key] = found
        yield _together(row, [here[key] for key in keys], lost)
        for key in set(keys):
            if last[key] == number:
                del here[key]


def _key(ref: Mapping[str, Any]) -> Key:
    return (ref["kind"], ref["url"], ref["start"], ref["length"])


def _together(row: Mapping[str, Any], found: Sequence[Found], lost: Lost) -> Gathered | Found:
    missing = [one for one in found if one.medium is None]
    if not missing:
        return Gathered(row=row, found=tuple(found))
    if lost == "drop" or len(missing) == len(found):
        return min(missing, key=lambda one: STEPS.index(one.step))
    kept = tuple(one for one in found if one.medium)
    return Gathered(row=_without(row, found), found=kept)


def _without(row: Mapping[str, Any], found: Sequence[Found]) -> dict[str, Any]:
    """A record without the placeholders of what it lost; lineage tells what that was, and why."""
    left = iter(found)
    turns = []
    for turn in row["turns"]:
        text, end = "", 0
        for match in PLACEHOLDER_PATTERN.finditer(turn["text"]):
            gone = next(left).medium is None
            text += turn["text"][end : match.start() if gone else match.end()]
            end = match.end()
            if gone and turn["text"][end : end + 1].isspace():
                end += 1
        turns.append({**turn, "text": text + turn["text"][end:]})
    lost = [
        f"{shown(ref['url'])} {one.reason}"
        for ref, one in zip(row["media"], found, strict=True)
        if one.medium is None
    ]
    lineage = {**json.loads(row["lineage"]), "lost_media": json.dumps(lost)}
    return {**row, "turns": turns, "lineage": json.dumps(lineage)}
