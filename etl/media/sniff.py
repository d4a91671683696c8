"""Detects MIME types from magic bytes, whatever the server says, and polyglot files."""

from __future__ import annotations

import io
import re
import zipfile

# Signatures after the WHATWG's MIME Sniffing standard (section 6) and the formats' own definitions.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"\xff\x4f\xff\x51", "image/jp2"),  # JPEG 2000 without a container
    (8, b"WAVE", "audio/wav"),
    (8, b"AVI ", "video/x-msvideo"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),  # Matroska, too
    (0, b"\x00\x00\x01\xba", "video/mpeg"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\x93NUMPY", "application/x-npy"),
    (0, b"ply\n", "model/ply"),
    (0, b"ply\r\n", "model/ply"),
    (0, b"OFF", "model/off"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"\x1f\x8b", "application/gzip"),
)
_BRANDS = {
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"mif1": "image/heic",
    b"qt  ": "video/quicktime",
}
_ENDS = 32 << 10
_ZIP_END = 66_000  # the end-of-directory record and the longest comment after it
_SCRIPT = re.compile(rb"<(?:\?php|script)")  # one search for both, by their common first byte
UNKNOWN = "application/octet-stream"


def sniff(data: bytes) -> str:
    """The MIME type of a medium by its magic bytes; `application/octet-stream` if unknown."""
    for offset, magic, mime in _MAGIC:
        if data.startswith(magic, offset) and (offset == 0 or data.startswith(b"RIFF")):
            return mime
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "video/mp4")
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # MPEG audio frame sync
        return "audio/aac" if data[1] & 0xF6 == 0xF0 else "audio/mpeg"
    if data[:1] == b"\x47" and data[188:189] == b"\x47":  # MPEG transport stream packets
        return "video/mp2t"
    return _text(data[:512])


def _text(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "text/html"
    if start.startswith((b"<?xml", b"<svg")):
        return "image/svg+xml" if b"<svg" in start else "text/xml"
    if start.startswith((b"v ", b"# ", b"o ", b"mtllib ")):
        return "model/obj"
    return UNKNOWN


def is_polyglot(data: bytes) -> bool:
    """Whether an image is something else as well: an archive, a document or a script.

    A ZIP reader looks for the directory at the end, a PDF reader for its header in the first
    kilobyte. Scripts are searched for where an image can hold text: before and after its pixels.
    """
    start = max(0, len(data) - _ENDS)
    if data.find(b"%PDF-", 0, 1024) >= 0 or _SCRIPT.search(data, 0, _ENDS):
        return True
    if _SCRIPT.search(data, start):
        return True
    return data.find(b"PK\x05\x06", max(0, len(data) - _ZIP_END)) >= 0 and zipfile.is_zipfile(
        io.BytesIO(data)
    )
