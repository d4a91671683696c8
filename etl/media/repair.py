"""Repairs media that lack nothing but bookkeeping, so that other readers can open them, too.

Each repair leaves all pixels or samples as they are: an end marker, sizes in a header, chunks that
are no part of the picture. A medium of which data is missing is not repaired.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""PNG's chunks of texts and colour profiles, of which Pillow reads a megabyte at most."""

_STREAMED = 0x7FFF_0000
"""A WAV's `data` chunk of this size or more, in bytes, belongs to a stream whose length its writer
did not know: 2³¹, 2³² - 1 and a little less are usual, and so is 0."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """Repaired bytes, and what was changed, for the lineage."""

    data: bytes
    change: str


def repair_image(data: bytes) -> Iterator[Repaired]:
    """Repairs of a JPEG without its end marker, or of a PNG with bad chunks beside its pixels.

    The first that can be opened is the one to take: later ones change more.
    """
    if data.startswith(b"\xff\xd8\xff"):
        yield from _with_end_marker(data)
    elif data.startswith(_PNG):
        yield from _without_bad_chunks(data)


def _with_end_marker(data: bytes) -> Iterator[Repaired]:
    """A JPEG with the end marker that it lacks, unless it lacks pixels, too."""
    import simplejpeg  # noqa: PLC0415 - for workers only

    ended = data.removesuffix(b"\xff") + b"\xff\xd9"
    try:
        space = simplejpeg.decode_jpeg_header(ended)[2]
        space = space if space in ("Gray", "CMYK") else "RGB"
        # Strict: libjpeg fills in what is missing, and only warns.
        simplejpeg.decode_jpeg(ended, space, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError:
        return
    yield Repaired(data=ended, change="end marker added")


def _without_bad_chunks(data: bytes) -> Iterator[Repaired]:
    """A PNG without texts, colour profile, and ancillary chunks with a wrong checksum; or with any.

    The latter is for chunks whose checksum is right but not their content.
    """
    chunks = list(_png_chunks(data))
    rest = data[len(_PNG) + sum(len(whole) for _, whole in chunks) :]
    critical = [whole for name, whole in chunks if not name[0] & 0x20]  # specification, 5.4
    good = [
        whole
        for name, whole in chunks
        if not name[0] & 0x20 or (_is_checked(whole) and name not in _TEXTS)
    ]
    for kept in (good, critical):
        if len(kept) < len(chunks):
            yield Repaired(data=b"".join([_PNG, *kept, rest]), change="chunks removed")


def _is_checked(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each whole chunk, up to the end of the image."""
    offset, name = len(_PNG), b""
    while name != b"IEND" and offset + 12 <= len(data):
        size = 12 + int.from_bytes(data[offset : offset + 4], "big")
        name = data[offset + 4 : offset + 8]
        if offset + size > len(data):
            return
        yield name, data[offset : offset + size]
        offset += size


def repair_wav(data: bytes) -> Repaired | None:
    """Write the true sizes into a WAV of which no sample is missing, if they are wrong.

    Raises:
        OSError: its `data` chunk is not whole.
    """
    is_wav = data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"
    found = _data_chunk(data) if is_wav else None
    if not found:
        return None
    start, size = found
    present, riff = len(data) - start, int.from_bytes(data[4:8], "little") + 8
    streamed = size >= _STREAMED or (size == 0 and riff != len(data))
    if not streamed and present < size:
        raise OSError(f"truncated: {present} of {size} bytes")
    # Of 2³² - 1 bytes every reader knows that it means a stream.
    if data[:4] != b"RIFF" or (size and not len(data) < riff < 1 << 32):
        return None
    head = data[:4] + struct.pack("<I", len(data) - 8) + data[8 : start - 4]
    body = struct.pack("<I", present if streamed else size) + data[start:]
    return Repaired(data=head + body, change="sizes in the header")


def _data_chunk(data: bytes) -> tuple[int, int] | None:
    """Where a WAV's samples start, and how many bytes its header promises; None if it has none."""
    offset, long_size = 12, None
    while offset + 8 <= len(data):
        name, length = data[offset : offset + 4], data[offset + 4 : offset + 8]
        size = int.from_bytes(length, "little")
        if name == b"ds64" and data[:4] == b"RF64":  # for sizes above 2³² (EBU Tech 3306)
            long_size = int.from_bytes(data[offset + 16 : offset + 24], "little")
        if name == b"data":
            return offset + 8, size if long_size is None else long_size
        offset += 8 + size + size % 2
    at = data.find(b"data", 12)  # after a chunk without its pad byte
    return None if at < 0 else (at + 8, int.from_bytes(data[at + 4 : at + 8], "little"))
