"""From an image's bytes to what a record holds: decoded once, and encoded anew only if need be.

A picture that is JPEG, PNG or WebP, upright, RGB or grey and small enough keeps its bytes. Any
other is turned by its EXIF orientation, put on white if it is transparent, made RGB, shrunk and
written as JPEG, and what was done is told. A JPEG that is to shrink is decoded at a half, a quarter
or an eighth of its size, which its format gives almost for free.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from etl.dedup.perceptual_hash import perceptual_hash
from etl.media.faces import Box, blur, turned_boxes
from etl.media.image import MIMES, SIDEWAYS, ImageLimits, size_fault
from etl.media.resize import decode_jpeg, encode_jpeg, grey, shrink
from etl.media.sniff import is_polyglot
from etl.storage.schema import Medium, sha256

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_KEPT_MODES = ("RGB", "L")
_TURNED = range(2, 9)  # EXIF orientations other than upright; what is none of them says nothing
_QUALITY = 95  # img2dataset's
_HASHED = (64, 64)  # a JPEG whose bytes stay is decoded in grey, at no less than this
_FORMATS = [name for name in MIMES if name != "MPO"]  # which Pillow finds by itself


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A sound picture as a medium, its perceptual hash, and what was changed, if anything.

    `notes` go into the record's lineage: `changed` (what was done, in order) and what the original
    was (`original_sha256`, `original_mime`, `original_width` and `original_height` as shown).
    """

    medium: Medium
    phash: int
    notes: Mapping[str, str] = field(default_factory=dict)


def finish_picture(
    data: bytes, limits: ImageLimits, size: int | None, faces: Sequence[Box] = ()
) -> Picture | str:
    """Check an image and bring it into shape.

    Args:
        data: as it was served.
        limits: which images are kept; they hold for what was served.
        size: the longest that the shorter side may be, in pixels; None leaves sizes alone.
        faces: what is to be blurred, see `etl.media.faces`.

    Returns:
        The picture, or the reason why it is not kept.
    """
    if not data:
        return "empty_body"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            # The header tells the size; a bomb is refused before its pixels are unpacked.
            fault = size_fault(*picture.size, limits) or ("polyglot" if is_polyglot(data) else None)
            return fault or _shape(data, picture, size, faces)
    except UnidentifiedImageError:
        return "wrong_type"
    except Image.DecompressionBombError:
        return "decompression_bomb"
    except Exception as error:  # whatever a decoder raises is the bytes' fault; one row's
        return "truncated" if "truncated" in str(error) else "corrupt"


def _shape(data: bytes, picture: Image.Image, size: int | None, faces: Sequence[Box]) -> Picture:
    mime = MIMES[picture.format or ""]
    width, height = picture.size
    orientation = picture.getexif().get(ExifTags.Base.Orientation)
    turned = orientation in _TURNED
    shrunk = size is not None and min(width, height) > size
    changes = [
        *(["turned"] if turned else []),
        *(["to RGB"] if picture.mode not in _KEPT_MODES else []),
        *(["shrunk"] if shrunk else []),
        *(["faces blurred"] if faces else []),
        *(["to JPEG"] if picture.format not in _KEPT_FORMATS else []),
    ]
    if not changes:
        picture.draft("L", _HASHED)  # of JPEGs only; damage is found all the same
        picture.load()
        medium = _medium(data, mime, (width, height))
        return Picture(medium=medium, phash=perceptual_hash(picture))
    if orientation in SIDEWAYS:
        width, height = height, width
    if size and shrunk:
        target = _shrunk(width, height, size)
        pixels = shrink(_pixels(data, picture, target, turned=turned), target)
    else:
        pixels = np.asarray(_upright(picture, turned=turned))
    if faces:
        boxes = turned_boxes(faces, orientation if turned else None)
        pixels = np.asarray(blur(Image.fromarray(pixels), boxes))
    final = encode_jpeg(pixels, _QUALITY)
    return Picture(
        medium=_medium(final, "image/jpeg", (pixels.shape[1], pixels.shape[0])),
        phash=perceptual_hash(Image.fromarray(grey(pixels))),
        notes={
            "changed": ", ".join(changes),
            "original_sha256": sha256(data),
            "original_mime": mime,
            "original_width": str(width),
            "original_height": str(height),
        },
    )


def _pixels(
    data: bytes, picture: Image.Image, target: tuple[int, int], *, turned: bool
) -> NDArray[np.uint8]:
    """A picture in RGB or grey as it is shown, at no less than a size (as it is shown, too)."""
    if picture.format == "JPEG" and not turned and picture.mode in _KEPT_MODES:
        return decode_jpeg(data, picture, target)
    stored = sorted(target, reverse=picture.size[0] > picture.size[1])
    picture.draft(None, (stored[0], stored[1]))
    return np.asarray(_upright(picture, turned=turned))


def _upright(picture: Image.Image, *, turned: bool) -> Image.Image:
    return _rgb(ImageOps.exif_transpose(picture) if turned else picture)


def _medium(data: bytes, mime: str, size: tuple[int, int]) -> Medium:
    width, height = size
    return Medium(
        kind="image", data=data, mime=mime, sha256=sha256(data), width=width, height=height
    )


def _shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """The size that brings the shorter side to `size` pixels."""
    shorter = min(width, height)
    return max(1, round(width * size / shorter)), max(1, round(height * size / shorter))


def _rgb(picture: Image.Image) -> Image.Image:
    """Any picture in RGB or grey; what is transparent shows white."""
    if picture.mode in _KEPT_MODES:
        return picture
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
