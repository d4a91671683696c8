"""Images: any format that Pillow reads, to RGB."""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(data: bytes) -> Image.Image:
    """Return an RGB image, rotated according to its EXIF, on white where it is transparent.

    Raises:
        OSError: truncated, damaged, or not an image.
        ValueError: more pixels than Pillow's limit against decompression bombs.
    """
    try:
        image = Image.open(io.BytesIO(data))
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            return Image.alpha_composite(white, layer).convert("RGB")
        # Not in place, and `convert` to the same mode, would copy the image.
        return image if image.mode == "RGB" else image.convert("RGB")
    except (UnidentifiedImageError, SyntaxError):  # the latter for a broken PNG
        raise OSError(f"{len(data)} bytes that are not an image") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
