"""Limits on images, and a check of images that stores nothing."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError

from etl.filters.base import FilterResult
from etl.storage.schema import sha256

MIMES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # Pillow's name of a camera's JPEG that contains a second picture
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "JPEG2000": "image/jp2",
}
"""Pillow's name of a format → its MIME type; other formats are not decoded."""

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
class ImageInfo:
    """Properties of a decoded image; width and height as *shown* (EXIF applied)."""

    mime: str
    width: int
    height: int


def decode_check(table: pa.Table, *, limits: ImageLimits) -> FilterResult:
    """Decode every image once and drop those that are invalid or outside the limits.

    Args:
        table: needs `data` (large_binary).
        limits: which images are kept.

    Returns:
        New columns `mime`, `width`, `height` (int32, pixels) and `sha256`.
    """
    reasons: list[str | None] = []
    infos: list[ImageInfo | None] = []
    digests: list[str] = []
    for value in table["data"]:
        data = value.as_py()
        result = probe(data, limits)
        reasons.append(result if isinstance(result, str) else None)
        infos.append(None if isinstance(result, str) else result)
        digests.append(sha256(data))
    columns = {
        "mime": pa.array([info and info.mime for info in infos], pa.string()),
        "width": pa.array([info and info.width for info in infos], pa.int32()),
        "height": pa.array([info and info.height for info in infos], pa.int32()),
        "sha256": pa.array(digests, pa.string()),
    }
    return FilterResult(reasons=reasons, columns=columns)


def probe(data: bytes, limits: ImageLimits) -> ImageInfo | str:
    """Decode one image; returns its properties, or the reason for dropping it."""
    if not data:
        return "empty_body"
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in MIMES if name != "MPO"])
    except UnidentifiedImageError:
        return "wrong_type"
    except Image.DecompressionBombError:
        return "decompression_bomb"
    except DAMAGE:
        return "corrupt"
    with image:
        # Only the header is read so far: a bomb is refused before its pixels are unpacked.
        return check_size(*image.size, limits) or _decode(image)


def check_size(width: int, height: int, limits: ImageLimits) -> str | None:
    """The reason for dropping an image of this size (pixels), or None."""
    if width * height > limits.max_pixels:
        return "decompression_bomb"
    if min(width, height) < limits.min_side:
        return "too_small"
    if max(width, height) > limits.max_aspect * min(width, height):
        return "aspect_too_large"
    return None


def _decode(image: Image.Image) -> ImageInfo | str:
    width, height = image.size
    try:
        image.load()
        sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except DAMAGE as error:
        return "truncated" if "truncated" in str(error) else "corrupt"
    if sideways:
        width, height = height, width
    return ImageInfo(mime=MIMES[image.format or ""], width=width, height=height)
