"""Pictures: whatever Pillow reads, to RGB."""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(data: bytes) -> Image.Image:
    """Return an RGB picture, turned as its EXIF says.

    Raises:
        OSError: truncated, damaged, or not a picture.
        ValueError: more pixels than Pillow's limit against decompression bombs.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        ImageOps.exif_transpose(picture, in_place=True)
        # Converted or not in place, a picture for which there is nothing to do would be copied.
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except (UnidentifiedImageError, SyntaxError):  # the latter is Pillow's word for a broken PNG
        raise OSError(f"{len(data)} bytes that are no picture") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
