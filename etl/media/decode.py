"""Normalises an image for storage: decoded once, and re-encoded only if necessary.

A JPEG, PNG or WebP that is upright, opaque, RGB or grey and small enough is stored unchanged. Any
other image is rotated by its EXIF orientation, put on white if it is transparent, converted to RGB,
shrunk and stored as JPEG, and lineage lists the changes. A JPEG to be shrunk is decoded at a half,
a quarter or an eighth of its size, which its format makes almost free. An image that cannot be
decoded is repaired (`etl.media.repair`), if that takes none of its pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from etl.dedup.perceptual_hash import perceptual_hash
from etl.media.container import DropError
from etl.media.faces import Box, blur, rotate_boxes
from etl.media.image import MIMES, SIDEWAYS, ImageLimits, check_size
from etl.media.repair import repair_image
from etl.media.resize import decode_jpeg, encode_jpeg, grey, shrink
from etl.media.sniff import is_polyglot
from etl.storage.schema import Medium, sha256

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_KEPT_MODES = ("RGB", "L")
_WIDE_MODES = ("I", "F")
_UNREADABLE = ("wrong_type", "truncated", "corrupt")
_SAMPLE_FORMAT = 339  # TIFF's tag; 1, the default, is an unsigned integer
_WHITE = 255
_UPRIGHT = 1
_ROTATED = range(2, 9)  # EXIF orientations other than upright; other values are ignored
_QUALITY = 95  # img2dataset's
_HASH_SIZE = (64, 64)  # minimum size at which a JPEG stored unchanged is decoded, in grey
_FORMATS = [name for name in MIMES if name != "MPO"]  # which Pillow detects by itself


@dataclass(frozen=True, kw_only=True)
class NormalizedImage:
    """A valid image as a medium, its perceptual hash, and what was changed, if anything.

    `notes` go into the record's lineage: `changed` (the changes, in order) and the original's
    properties (`original_sha256`, `original_mime`, `original_width`, `original_height` as shown).
    """

    medium: Medium
    phash: int
    notes: Mapping[str, str] = field(default_factory=dict)


def normalize_image(
    data: bytes, limits: ImageLimits, size: int | None, faces: Sequence[Box] = ()
) -> NormalizedImage | str:
    """Check an image and normalise it.

    Args:
        data: the encoded image.
        limits: which images are kept; they apply to the original.
        size: maximum length of the shorter side, in pixels; None does not shrink.
        faces: boxes to blur, see `etl.media.faces`.

    Returns:
        The image, or the reason for dropping it.
    """
    if not data:
        return "empty_body"
    found = _check(data, limits, size, faces)
    for repaired in repair_image(data) if found in _UNREADABLE else ():
        again = _check(repaired.data, limits, size, faces)
        if again not in _UNREADABLE:
            return again if isinstance(again, str) else _repaired(again, repaired.change, data)
    return found


def _check(
    data: bytes, limits: ImageLimits, size: int | None, faces: Sequence[Box]
) -> NormalizedImage | str:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # Only the header is read so far: a bomb is refused before its pixels are unpacked.
            reason = check_size(*image.size, limits)
            reason = reason or ("polyglot" if is_polyglot(data) else None)
            return reason or _normalize(data, image, size, faces)
    except DropError as drop:
        return str(drop)
    except UnidentifiedImageError:
        return "wrong_type"
    except Image.DecompressionBombError:
        return "decompression_bomb"
    except Exception as error:  # whatever a decoder raises, it concerns this image only
        return "truncated" if "truncated" in str(error) else "corrupt"


def _repaired(found: NormalizedImage, change: str, original: bytes) -> NormalizedImage:
    """An image with the repair among its notes."""
    medium, notes = found.medium, found.notes
    changes = ", ".join(filter(None, [change, notes.get("changed")]))
    size = {"original_width": str(medium.width), "original_height": str(medium.height)}
    before = {"original_mime": medium.mime, **size, **notes}
    return dataclasses.replace(
        found, notes={**before, "changed": changes, "original_sha256": sha256(original)}
    )


def _normalize(
    data: bytes, image: Image.Image, size: int | None, faces: Sequence[Box]
) -> NormalizedImage:
    mime = MIMES[image.format or ""]
    width, height = image.size
    orientation = _orientation(image)
    rotated = orientation in _ROTATED
    shrunk = size is not None and min(width, height) > size
    changes = [
        *(["turned"] if rotated else []),
        *(["EXIF removed"] if orientation is None else []),
        *([] if _is_opaque(image) else ["to RGB"]),
        *(["shrunk"] if shrunk else []),
        *(["faces blurred"] if faces else []),
        *(["to JPEG"] if image.format not in _KEPT_FORMATS else []),
    ]
    if not changes:
        image.draft("L", _HASH_SIZE)  # for JPEG only; damage is still found
        image.load()
        medium = _medium(data, mime, (width, height))
        return NormalizedImage(medium=medium, phash=perceptual_hash(image))
    if orientation in SIDEWAYS:
        width, height = height, width
    if size and shrunk:
        target = _shrunk(width, height, size)
        pixels = shrink(_pixels(data, image, target, rotated=rotated), target)
    else:
        pixels = np.asarray(_upright(image, rotated=rotated))
    if faces:
        boxes = rotate_boxes(faces, orientation if rotated else _UPRIGHT)
        pixels = np.asarray(blur(Image.fromarray(pixels), boxes))
    final = encode_jpeg(pixels, _QUALITY)
    return NormalizedImage(
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


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 if there is none; None if the EXIF cannot be read."""
    if image.format == "PNG":
        image.load()  # its EXIF may follow its pixels, whose damage must be raised
    try:
        return image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except Exception:  # whatever its parser raises, it is no pixel
        return None


def _pixels(
    data: bytes, image: Image.Image, target: tuple[int, int], *, rotated: bool
) -> NDArray[np.uint8]:
    """The upright image in RGB or grey, decoded at the target size or more."""
    if image.format == "JPEG" and not rotated and image.mode in _KEPT_MODES:
        return decode_jpeg(data, image, target)
    stored = sorted(target, reverse=image.size[0] > image.size[1])
    image.draft(None, (stored[0], stored[1]))
    return np.asarray(_upright(image, rotated=rotated))


def _upright(image: Image.Image, *, rotated: bool) -> Image.Image:
    turned = ImageOps.exif_transpose(image) if rotated else image
    return _scaled(turned, image) if image.mode in _WIDE_MODES else _rgb(turned)


def _medium(data: bytes, mime: str, size: tuple[int, int]) -> Medium:
    width, height = size
    return Medium(
        kind="image", data=data, mime=mime, sha256=sha256(data), width=width, height=height
    )


def _shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """The size at which the shorter side has `size` pixels."""
    shorter = min(width, height)
    return max(1, round(width * size / shorter)), max(1, round(height * size / shorter))


def _is_opaque(image: Image.Image) -> bool:
    """Whether an image is in RGB or grey, and no colour of it stands for transparency."""
    return image.mode in _KEPT_MODES and "transparency" not in image.info


def _rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB or grey, on a white background if it is transparent."""
    if _is_opaque(image):
        return image
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey_levels = (values >> 8).astype(np.uint8)
        grey_levels[values == image.info.get("transparency")] = _WHITE
        return Image.fromarray(grey_levels)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, opened: Image.Image) -> Image.Image:
    """A grey image of 32 bits, whose values may have any range, from black to white.

    Args:
        image: the pixels.
        opened: the same, as it was opened, with its TIFF tags.
    """
    values = np.asarray(image)
    # Pillow takes unsigned numbers for signed ones.
    if values.dtype == np.int32 and getattr(opened, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise DropError("non_finite")
    low, high = float(values.min()), float(values.max())
    fractions = (values - np.float64(low)) / max(high - low, np.finfo(np.float64).tiny)
    return Image.fromarray((fractions * _WHITE + 0.5).astype(np.uint8))
