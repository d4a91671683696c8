"""Operations on downloaded images."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError

from etl.filters.base import Verdict
from etl.storage.schema import sha256

MIMES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # what Pillow calls a camera's JPEG with a second picture in it
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
"""Pillow's name of a format → its MIME type; no other format is decoded."""

SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, IndexError, EOFError, MemoryError)
"""What Pillow's decoders raise on damaged bytes."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Which images are kept: sides and area in pixels, aspect as longer over shorter side."""

    min_side: int
    max_aspect: float
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a decoded image is; width and height are those it is *shown* with (EXIF applied)."""

    mime: str
    width: int
    height: int


def decode_check(table: pa.Table, *, limits: ImageLimits) -> Verdict:
    """Decode every image once and drop what is no sound picture of a sensible size.

    Args:
        table: needs `data` (large_binary).
        limits: which images are kept.

    Returns:
        New columns `mime`, `width`, `height` (int32, pixels) and `sha256`.
    """
    reasons: list[str | None] = []
    facts: list[ImageFacts | None] = []
    digests: list[str] = []
    for value in table["data"]:
        data = value.as_py()
        found = examine(data, limits)
        reasons.append(found if isinstance(found, str) else None)
        facts.append(None if isinstance(found, str) else found)
        digests.append(sha256(data))
    columns = {
        "mime": pa.array([fact and fact.mime for fact in facts], pa.string()),
        "width": pa.array([fact and fact.width for fact in facts], pa.int32()),
        "height": pa.array([fact and fact.height for fact in facts], pa.int32()),
        "sha256": pa.array(digests, pa.string()),
    }
    return Verdict(reasons=reasons, columns=columns)


def examine(data: bytes, limits: ImageLimits) -> ImageFacts | str:
    """Decode one image; the facts about it, or the reason why it is not kept."""
    if not data:
        return "empty_body"
    try:
        picture = Image.open(io.BytesIO(data), formats=[name for name in MIMES if name != "MPO"])
    except UnidentifiedImageError:
        return "wrong_type"
    except Image.DecompressionBombError:
        return "decompression_bomb"
    except DAMAGE:
        return "corrupt"
    with picture:
        # The header tells the size; a bomb is refused before its pixels are unpacked.
        return size_fault(*picture.size, limits) or _decode(picture)


def size_fault(width: int, height: int, limits: ImageLimits) -> str | None:
    """The reason why an image of this size (pixels) is not kept, or None."""
    if width * height > limits.max_pixels:
        return "decompression_bomb"
    if min(width, height) < limits.min_side:
        return "too_small"
    if max(width, height) > limits.max_aspect * min(width, height):
        return "too_oblong"
    return None


def _decode(picture: Image.Image) -> ImageFacts | str:
    width, height = picture.size
    try:
        picture.load()
        turned = picture.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except DAMAGE as error:
        return "truncated" if "truncated" in str(error) else "corrupt"
    if turned:
        width, height = height, width
    return ImageFacts(mime=MIMES[picture.format or ""], width=width, height=height)
