"""Video: any format that FFmpeg reads, to a number of evenly spaced RGB frames."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
from av.container import InputContainer
from PIL import Image

from pipeline.data.readers.container import open_container

MAX_FRAMES = 1 << 18
"""Largest number of frames of a whole video: more than an hour at 60 per second."""

MAX_PIXELS = 1 << 26
"""Largest number of pixels of a frame: more than 8K."""

MAX_DECODED = 1 << 36
"""Largest number of pixels decoded for one video: 18 minutes in full HD without a key frame."""


_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""FFmpeg's names of the formats with a timestamp for every frame and exact seeking."""


@dataclass(frozen=True, kw_only=True)
class _Index:
    """The timestamps of a video's frames, in its own unit, and those of its key frames.

    `timed` is False where timestamps are unreliable; the frames' numbers then replace them.
    """

    times: Sequence[int]
    key_times: Sequence[int] = ()
    timed: bool = True

    def key_before(self, time: int) -> int | None:
        """Return the time of the last key frame at or before a time."""
        number = bisect.bisect_right(self.key_times, time)
        return self.key_times[number - 1] if number else None


def frame_indices(available: int, frames: int) -> list[int]:
    """Return which of the available frames to take.

    The video is divided into `frames` equal segments, and the middle frame of each is taken: frame
    ⌊(i + ½) · available / frames⌋ for segment i. Where fewer are available, some repeat.
    """
    return [(2 * segment + 1) * available // (2 * frames) for segment in range(frames)]


def read_video(data: bytes, frames: int) -> list[Image.Image]:
    """Return RGB frames of a video in order of time, with the video's rotation applied.

    Args:
        data: MP4, WebM, AVI, GIF and the like; its first video track is read.
        frames: how many; `frame_indices` selects them.

    Raises:
        OSError: truncated, damaged, or no video.
        ValueError: larger than the limits above.
    """
    index = _index(data)
    with open_container(data) as container:
        times = [index.times[number] for number in frame_indices(len(index.times), frames)]
        return [_image(frame) for frame in _frames_at(container, index, times)]


def _index(data: bytes) -> _Index:
    """Index all frames; without decoding, if the format has timestamps."""
    times: list[int] = []
    key_times: list[int] = []
    with open_container(data) as container:
        if not container.streams.video:
            raise OSError(f"{len(data)} bytes that hold no video")
        track = container.streams.video[0]
        if track.width * track.height > MAX_PIXELS:
            raise ValueError(f"frames of {track.width}×{track.height}, at most {MAX_PIXELS} pixels")
        if container.format.name not in _SEEKABLE:
            return _count_frames(data)
        for packet in container.demux(track):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                return _count_frames(data)
            times.append(packet.pts)
            if packet.is_keyframe:
                key_times.append(packet.pts)
            if len(times) > MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
    if not times:
        raise OSError(f"{len(data)} bytes that hold no frames")
    return _Index(times=sorted(times), key_times=sorted(key_times))


def _count_frames(data: bytes) -> _Index:
    count = 0
    with open_container(data) as container:
        for _ in _decode(container, timed=False):
            count += 1
            if count > MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
    if not count:
        raise OSError(f"{len(data)} bytes that hold no frames")
    return _Index(times=range(count), timed=False)


def _frames_at(
    container: InputContainer, index: _Index, times: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames at ascending times; past the end of the video, its last frame."""
    stream = _decode(container, timed=index.timed)
    now, frame = next(stream, (0, None))
    for time in times:
        key = index.key_before(time)
        if key is not None and now < key:
            container.seek(key, stream=container.streams.video[0])
            stream = _decode(container, timed=True)
            now, frame = next(stream, (now, frame))
        while now < time:
            found = next(stream, None)
            if found is None:
                break
            now, frame = found
        if frame is None:
            raise OSError("a video of which no frame can be decoded")
        yield frame


def _decode(container: InputContainer, *, timed: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield frames with their timestamps, or with their numbers."""
    pixels = 0
    for number, frame in enumerate(container.decode(video=0)):
        pixels += frame.width * frame.height
        if frame.width * frame.height > MAX_PIXELS or pixels > MAX_DECODED:
            raise ValueError(f"more than {MAX_PIXELS} pixels per frame, or {MAX_DECODED} in all")
        if not timed:
            yield number, frame
        elif frame.pts is not None:
            yield frame.pts, frame


def _image(frame: av.VideoFrame) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
