"""Probing videos: check and measure them, and sample a few frames.

Videos are re-encoded only if frames are sampled.
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

from etl.media.container import DropError, open_container, require, subtype
from etl.media.sniff import sniff

_PROBED_FRAMES = 5
"""Frames that are decoded to check that a video is readable and that something moves in it."""

_VIDEO_TYPES = ("video/", "image/gif", "audio/ogg")
"""MIME types of what may be a video, by its first bytes."""

_JPEG_SCALE = 3
"""FFmpeg's `q:v` of sampled frames: 2 is best, 31 worst."""


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Which videos are kept: sides in pixels, seconds, frames, and motion.

    `min_motion` is the minimum mean absolute difference of successive sampled frames, in grey
    levels of 255. `frames` are sampled uniformly from each video; 0 stores the video unchanged.
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
class VideoInfo:
    """Properties of a video; width and height as it is shown. `data` if it was re-encoded.

    `scores` are its `duration` and, if it has more than one frame, its `motion`; see `VideoLimits`.
    """

    mime: str
    width: int
    height: int
    frames: int
    duration: float
    data: bytes | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def probe(data: bytes, limits: VideoLimits) -> VideoInfo | str:
    """Measure a video; returns its properties, or the reason for dropping it.

    Reads all packets but decodes only some frames: damage in between is not found.
    """
    try:
        require(bool(data), "empty_body")
        return _probe(data, limits)
    except DropError as drop:
        return str(drop)
    except OSError as error:
        return _damage(data, str(error))


def _probe(data: bytes, limits: VideoLimits) -> VideoInfo:
    with open_container(data) as container:
        require(bool(container.streams.video), "wrong_type")
        times, duration = _measure(container, data, limits)
        mime = f"video/{subtype(container)}"
    indices = sampled_indices(len(times), limits.frames or min(_PROBED_FRAMES, len(times)))
    found = _frames(data, [times[index] for index in indices], limits.max_pixels)
    frames = _of_one_size([_to_array(frame) for frame in found])
    require(len(frames) == len(indices), "truncated")
    scores = {"duration": duration}
    if len(times) > 1:
        scores["motion"] = _motion(frames)
        require(scores["motion"] >= limits.min_motion, "no_motion")
    height, width = frames[0].shape[:2]
    encoded = _encode(frames, duration) if limits.frames else None
    return VideoInfo(
        mime="video/mp4" if encoded else mime,
        width=width,
        height=height,
        frames=len(frames) if encoded else len(times),
        duration=duration,
        data=encoded,
        scores=scores,
    )


def _damage(data: bytes, message: str) -> str:
    """The drop reason for what FFmpeg cannot read."""
    if not sniff(data).startswith(_VIDEO_TYPES):
        return "wrong_type"
    return "truncated" if "nvalid data" in message or "End of file" in message else "corrupt"


def _measure(
    container: InputContainer, data: bytes, limits: VideoLimits
) -> tuple[list[int], float]:
    """The presentation time of each shown frame, sorted, and the duration in seconds."""
    track = container.streams.video[0]
    require(track.width * track.height <= limits.max_pixels, "decompression_bomb")
    require(min(track.width, track.height) >= limits.min_side, "too_small")
    times: list[int] = []
    end = hidden = 0
    for packet in container.demux(track):
        if not packet.size or packet.is_discard:
            hidden += packet.size > 0  # by an edit list; the header counts it
            continue
        time = packet.pts if packet.pts is not None else packet.dts
        times.append(len(times) if time is None else time)
        end = max(end, times[-1] + (packet.duration or 0))
        require(len(times) <= limits.max_frames, "too_many_frames")
    complete = len(times) + hidden >= track.frames or _is_whole_avi(data)
    require(bool(times) and complete, "truncated")
    require(len(times) >= limits.min_frames, "too_few_frames")
    times.sort()
    unit = track.time_base or Fraction(1, 25)
    if end == times[-1]:  # the last frame has no duration of its own
        rate = track.average_rate or track.guessed_rate or Fraction(25)
        end += max(1, round(1 / (rate * unit)))
    seconds = float((end - times[0]) * unit)
    require(seconds >= limits.min_seconds, "too_short")
    require(seconds <= limits.max_seconds, "too_long")
    return times, seconds


def _is_whole_avi(data: bytes) -> bool:
    """Whether it is an AVI of which no byte is missing; some headers count a frame too many."""
    size = int.from_bytes(data[4:8], "little")
    return data[8:12] == b"AVI " and 0 < size <= len(data) - 8


def sampled_indices(available: int, count: int) -> list[int]:
    """The middle frame of each of `count` equal segments; repeats frames if there are too few."""
    return [(2 * segment + 1) * available // (2 * count) for segment in range(count)]


def _frames(data: bytes, times: Sequence[int], max_pixels: int) -> Iterator[av.VideoFrame]:
    """Yield the frame at each of the ascending times, or the next frame if there is none."""
    with open_container(data, max_pixels=max_pixels) as container:
        track = container.streams.video[0]
        current: av.VideoFrame | None = None
        stream = container.decode(track)
        keyframes = [] if not times else _keyframe_times(data)
        for time in times:
            keyframe = max((one for one in keyframes if one <= time), default=None)
            if keyframe is not None and (current is None or (current.pts or 0) < keyframe):
                container.seek(keyframe, stream=track)
                stream = container.decode(track)
                current = None
            while current is None or (current.pts is not None and current.pts < time):
                found = next(stream, None)
                if found is None:
                    break
                current = found
            if current is None or (current.pts is not None and current.pts < time):
                return
            yield current


def _keyframe_times(data: bytes) -> list[int]:
    """The times of key frames, for formats in which seeking is exact."""
    with open_container(data) as container:
        if container.format.name not in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"):
            return []
        packets = container.demux(container.streams.video[0])
        return [one.pts for one in packets if one.is_keyframe and one.pts is not None]


def _to_array(frame: av.VideoFrame) -> NDArray[np.uint8]:
    image: Image.Image = frame.to_image()
    upright = image.rotate(frame.rotation, expand=True) if frame.rotation else image
    return np.asarray(upright.convert("RGB"))


def _of_one_size(frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """All frames in the size of the first: VP8 and others may change it on the way."""
    return [
        frame
        if frame.shape == frames[0].shape
        else np.asarray(Image.fromarray(frame).resize(frames[0].shape[1::-1]))
        for frame in frames
    ]


def _motion(frames: Sequence[NDArray[np.uint8]]) -> float:
    """The largest mean absolute difference of successive frames."""
    pairs = itertools.pairwise(frames)
    return max((float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs), default=0.0)


def _encode(frames: Sequence[NDArray[np.uint8]], duration: float) -> bytes:
    """Encode frames as a video of JPEGs with the original's duration."""
    stream = io.BytesIO()
    rate = Fraction(len(frames) / duration).limit_denominator(1000)
    height, width = frames[0].shape[:2]
    options = {"flags": "+bitexact+qscale", "global_quality": str(_JPEG_SCALE * 118)}
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("mjpeg", rate=rate, options=options)
        track.width, track.height, track.pix_fmt = width, height, "yuvj420p"
        track.thread_count = 1
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
