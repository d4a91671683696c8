"""Media as data URIs: images scaled down, videos and audio for players, the rest in words."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from etl.storage.schema import Medium

_THUMBNAIL = 320
_SMALL_BYTES = 20_000
_MAX_BYTES = 1_000_000
_ENLARGED = 160  # an image of fewer pixels across is shown enlarged


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A medium as a page shows it.

    Args:
        kind: of the medium, as in a sample.
        text: what it is, in words.
        uri: its content; None if it is too large or no browser shows it.
        sharp: whether it is enlarged without smoothing.
    """

    kind: str
    text: str
    uri: str | None = None
    sharp: bool = False


def embed(medium: Medium) -> Embedded:
    """Return a medium as a page shows it.

    Raises:
        ValueError: the bytes of an image are none.
    """
    data, mime = medium.data, medium.mime
    text = f"{medium.kind}, {len(data):,} bytes"
    if medium.points:
        text += f", {medium.points:,} points"
    if medium.kind == "image":
        data, mime = _thumbnail(data)
    if medium.kind not in ("image", "video", "audio") or len(data) > _MAX_BYTES:
        return Embedded(kind=medium.kind, text=text)
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    sharp = 0 < (medium.width or 0) < _ENLARGED
    return Embedded(kind=medium.kind, text=text, uri=uri, sharp=sharp)


def embed_any(medium: Medium) -> Embedded:
    """Return a medium as a page shows it; of an image that cannot be read, the reason."""
    try:
        return embed(medium)
    except ValueError as error:
        return Embedded(kind=medium.kind, text=f"{medium.kind}, not shown: {error}")


def _thumbnail(data: bytes) -> tuple[bytes, str]:
    """Return an image's bytes and MIME type, scaled down if it is large."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if len(data) < _SMALL_BYTES and image.format in ("PNG", "JPEG", "WEBP"):
                return data, f"image/{image.format.lower()}"
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            stream = io.BytesIO()
            image.convert("RGB").save(stream, "JPEG", quality=80)
    except OSError:
        message = f"want a PNG, JPEG or WebP image; this one starts with {data[:8]!r}"
        raise ValueError(message) from None
    return stream.getvalue(), "image/jpeg"
