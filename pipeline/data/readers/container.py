"""Opens video and audio with FFmpeg, safely: from bytes alone, and only formats that hold media."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    *("matroska,webm", "avi", "mpegts", "mpeg", "asf", "flv", "gif", "ogg"),
    *("aac", "ac3", "aiff", "amr", "caf", "flac", "mp3", "wav"),
)
"""FFmpeg's names of the formats. No playlists, which would open other files and URLs."""


@contextmanager
def open_container(data: bytes) -> Iterator[InputContainer]:
    """Open encoded video or audio; FFmpeg's errors inside the block become OSError.

    Raises:
        OSError: of a format that is not allowed, truncated, or damaged.
    """
    options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": ""}
    try:
        stream = io.BytesIO(data)
        with av.open(stream, "r", options=options, metadata_errors="replace") as container:
            for track in (*container.streams.video, *container.streams.audio):
                if track.codec_context is None:
                    raise OSError(f"{len(data)} bytes in an unknown {track.type} codec")
                track.codec_context.thread_count = 1  # there are many data workers
            yield container
    except av.FFmpegError as error:
        raise OSError(f"{len(data)} bytes that cannot be decoded ({error.strerror})") from None
