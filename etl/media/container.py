"""Opens videos and sounds with FFmpeg, safely: from memory only, and no playlists."""

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
"""FFmpeg's name of a format → the MIME subtype; no other format is opened.

Playlists are excluded: they would open other files and URLs.
"""

_WEBM = {"vp8", "vp9", "av1", "opus", "vorbis"}


class DropError(Exception):
    """A medium must be dropped; the message is the drop reason."""


def require(condition: bool, reason: str) -> None:
    """Raise DropError with the reason unless the condition holds."""
    if not condition:
        raise DropError(reason)


@contextmanager
def open_container(data: bytes, *, max_pixels: int | None = None) -> Iterator[InputContainer]:
    """Open encoded video or audio; FFmpeg's errors within the block become OSError.

    Args:
        data: the encoded bytes.
        max_pixels: of a frame that is decoded, whatever size the header states.

    Raises:
        OSError: of no allowed format, truncated, or damaged.
    """
    options = {"format_whitelist": ",".join(_MIMES), "protocol_whitelist": ""}
    try:
        stream = io.BytesIO(data)
        with av.open(stream, "r", options=options, metadata_errors="replace") as container:
            for track in (*container.streams.video, *container.streams.audio):
                if track.codec_context is None:
                    raise OSError("unknown codec")
                track.codec_context.thread_count = 1  # there are many worker threads
            for track in container.streams.video if max_pixels else ():
                track.codec_context.options = {"max_pixels": str(max_pixels)}
            yield container
    except av.FFmpegError as error:
        raise OSError(str(error.strerror)) from None


def subtype(container: InputContainer) -> str:
    """The part after `video/` or `audio/` in a container's MIME type."""
    name = container.format.name
    tracks = (*container.streams.video, *container.streams.audio)
    if name == "matroska,webm" and all(track.codec_context.name in _WEBM for track in tracks):
        return "webm"
    return _MIMES[name]
