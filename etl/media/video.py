"""Operations on videos: what they are, whether they are sound, and a few frames of them.

Nothing is encoded anew unless frames are sampled.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

from etl.media.container import FaultError, opened, require, subtype

_LOOKED_AT = 5
"""Frames that are decoded to see that a video is sound and that something moves in it."""

_JPEG_SCALE = 3
"""FFmpeg's `q:v` of sampled frames: 2 is best, 31 worst."""


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Which videos are kept: sides in pixels, seconds, frames, and how much their pictures differ.

    `min_motion` is the least mean absolute difference of successive sampled frames, in grey levels
    of 255. `frames` of each are kept, uniformly sampled; 0 keeps the video as it is.
    """

    min_side: int = 64
    max_pixels: int = 50_000_000
    min_frames: int = 1
    max_frames: int = 1 << 18
    min_seconds: float = 0.5
    max_seconds: float = 600.0
    min_motion: float = 0.25
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a video is; width and height as it is shown. `data` if it is encoded anew.

    `scores` are its `duration` and, if it has more than one frame, its `motion`; see `VideoLimits`.
    """

    mime: str
    width: int
    height: int
    frames: int
    duration: float
    data: bytes | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def examine(data: bytes, limits: VideoLimits) -> VideoFacts | str:
    """The facts about a video, or the reason why it is not kept.

    All packets are read, and some frames decoded: damage between those is not found.
    """
    try:
        require(bool(data), "empty_body")
        return _examine(data, limits)
    except FaultError as fault:
        return str(fault)
    except OSError as error:
        return _damage(data, str(error))


def _examine(data: bytes, limits: VideoLimits) -> VideoFacts:
    with opened(data) as container:
        require(bool(container.streams.video), "wrong_type")
        times, duration = _measure(container, limits)
        mime = f"video/{subtype(container)}"
    wanted = middles(len(times), limits.frames or min(_LOOKED_AT, len(times)))
    pictures = [_picture(frame) for frame in _frames(data, [times[number] for number in wanted])]
    require(len(pictures) == len(wanted), "truncated")
    scores = {"duration": duration}
    if len(times) > 1:
        scores["motion"] = _motion(pictures)
        require(scores["motion"] >= limits.min_motion, "no_motion")
    height, width = pictures[0].shape[:2]
    anew = _sampled(pictures, duration) if limits.frames else None
    return VideoFacts(
        mime="video/mp4" if anew else mime,
        width=width,
        height=height,
        frames=len(pictures) if anew else len(times),
        duration=duration,
        data=anew,
        scores=scores,
    )


def _damage(data: bytes, message: str) -> str:
    """The reason for what FFmpeg cannot read."""
    if data[4:8] == b"ftyp" or data[:4] in (b"\x1aE\xdf\xa3", b"RIFF"):
        return "truncated" if "nvalid data" in message or "End of file" in message else "corrupt"
    return "wrong_type"


def _measure(container: InputContainer, limits: VideoLimits) -> tuple[list[int], float]:
    """When each frame is shown, in order, and the seconds that all last."""
    track = container.streams.video[0]
    require(track.width * track.height <= limits.max_pixels, "decompression_bomb")
    require(min(track.width, track.height) >= limits.min_side, "too_small")
    times: list[int] = []
    end = 0
    for packet in container.demux(track):
        if not packet.size or packet.is_discard:
            continue
        shown = packet.pts if packet.pts is not None else packet.dts
        times.append(len(times) if shown is None else shown)
        end = max(end, times[-1] + (packet.duration or 0))
        require(len(times) <= limits.max_frames, "too_many_frames")
    require(bool(times) and len(times) >= track.frames, "truncated")
    require(len(times) >= limits.min_frames, "too_few_frames")
    times.sort()
    unit = track.time_base or Fraction(1, 25)
    if end == times[-1]:  # the last frame's own duration is not told
        rate = track.average_rate or track.guessed_rate or Fraction(25)
        end += max(1, round(1 / (rate * unit)))
    seconds = float((end - times[0]) * unit)
    require(seconds >= limits.min_seconds, "too_short")
    require(seconds <= limits.max_seconds, "too_long")
    return times, seconds


def middles(available: int, wanted: int) -> list[int]:
    """The frame in the middle of each of `wanted` equal parts; of few frames some come twice."""
    return [(2 * part + 1) * available // (2 * wanted) for part in range(wanted)]


def _frames(data: bytes, times: Sequence[int]) -> Iterator[av.VideoFrame]:
    """The frames shown at ascending times, or the next ones where a time is no frame's."""
    with opened(data) as container:
        track = container.streams.video[0]
        now: av.VideoFrame | None = None
        stream = container.decode(track)
        keys = [] if not times else _keys(data)
        for time in times:
            key = max((one for one in keys if one <= time), default=None)
            if key is not None and (now is None or (now.pts or 0) < key):
                container.seek(key, stream=track)
                stream = container.decode(track)
                now = None
            while now is None or (now.pts is not None and now.pts < time):
                found = next(stream, None)
                if found is None:
                    break
                now = found
            if now is None or (now.pts is not None and now.pts < time):
                return
            yield now


def _keys(data: bytes) -> list[int]:
    """When key frames are shown, in formats in which jumps land exactly."""
    with opened(data) as container:
        if container.format.name not in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"):
            return []
        packets = container.demux(container.streams.video[0])
        return [one.pts for one in packets if one.is_keyframe and one.pts is not None]


def _picture(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture: Image.Image = frame.to_image()
    turned = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    return np.asarray(turned.convert("RGB"))


def _motion(pictures: Sequence[NDArray[np.uint8]]) -> float:
    """Mean absolute difference of successive pictures; the largest of all pairs."""
    pairs = itertools.pairwise(pictures)
    return max((float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs), default=0.0)


def _sampled(pictures: Sequence[NDArray[np.uint8]], duration: float) -> bytes:
    """Pictures as a video of JPEGs that lasts as long as what they were taken from."""
    stream = io.BytesIO()
    rate = Fraction(len(pictures) / duration).limit_denominator(1000)
    height, width = pictures[0].shape[:2]
    options = {"flags": "+bitexact+qscale", "global_quality": str(_JPEG_SCALE * 118)}
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("mjpeg", rate=rate, options=options)
        track.width, track.height, track.pix_fmt = width, height, "yuvj420p"
        track.thread_count = 1
        for picture in pictures:
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
