"""Opening videos and sounds with FFmpeg, safely: from bytes alone, and no playlists."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer

_MIMES = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "x-matroska",
    "avi": "x-msvideo",
    "mpegts": "mp2t",
    "mpeg": "mpeg",
    "asf": "x-ms-asf",
    "flv": "x-flv",
    "ogg": "ogg",
    "gif": "gif",
    "aac": "aac",
    "mp3": "mpeg",
    "wav": "wav",
    "flac": "flac",
}
"""FFmpeg's name of a format → the MIME subtype; no other is opened.

Playlists are not among them: those would open other files and addresses.
"""

_WEBM = {"vp8", "vp9", "av1", "opus", "vorbis"}


class FaultError(Exception):
    """Why a medium is not kept: the reason that the books name."""


def require(holds: bool, reason: str) -> None:
    """Raise FaultError unless something holds."""
    if not holds:
        raise FaultError(reason)


@contextmanager
def opened(data: bytes) -> Iterator[InputContainer]:
    """Open encoded video or audio; FFmpeg's errors within the block become OSError.

    Raises:
        OSError: of no allowed format, truncated, or damaged.
    """
    options = {"format_whitelist": ",".join(_MIMES), "protocol_whitelist": ""}
    try:
        stream = io.BytesIO(data)
        with av.open(stream, "r", options=options, metadata_errors="replace") as container:
            for track in (*container.streams.video, *container.streams.audio):
                if track.codec_context is None:
                    raise OSError("its codec is not known")
                track.codec_context.thread_count = 1  # workers are many
            yield container
    except av.FFmpegError as error:
        raise OSError(str(error.strerror)) from None


def subtype(container: InputContainer) -> str:
    """What stands after `video/` or `audio/` in a container's MIME type."""
    name = container.format.name
    tracks = (*container.streams.video, *container.streams.audio)
    if name == "matroska,webm" and all(track.codec_context.name in _WEBM for track in tracks):
        return "webm"
    return _MIMES[name]
