import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from etl.media.image import ImageInfo, ImageLimits, decode_check, probe
from etl.storage.schema import sha256

LIMITS = ImageLimits(min_side=16, max_aspect=3.0, max_pixels=1_000_000)


def encoded(name: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, name, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size but has no pixels, like a decompression bomb."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "mime"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_image_types_are_detected_from_bytes(name: str, mime: str) -> None:
    assert probe(encoded(name), LIMITS) == ImageInfo(mime=mime, width=40, height=30)


def test_width_and_height_are_those_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: rotated by 90 degrees
    rotated = encoded("JPEG", exif=exif)
    assert probe(rotated, LIMITS) == ImageInfo(mime="image/jpeg", width=30, height=40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_body"),
        (b"<!doctype html><title>moved</title>", "wrong_type"),
        (b"%PDF-1.4 and so on", "wrong_type"),
        (encoded("PPM"), "wrong_type"),
        (encoded("JPEG")[:-200], "truncated"),
        (encoded("PNG")[:-200], "truncated"),
        (encoded("PNG")[:-200] + b"\0" * 200, "corrupt"),
        (png_header(2000, 2000), "decompression_bomb"),
        (png_header(100_000, 100_000), "decompression_bomb"),
        (encoded("PNG", (15, 40)), "too_small"),
        (encoded("PNG", (100, 30)), "aspect_too_large"),
    ],
)
def test_invalid_images_have_a_reason(data: bytes, reason: str) -> None:
    assert probe(data, LIMITS) == reason


def test_a_batch_gets_columns_for_valid_images() -> None:
    good, bad = encoded("PNG"), b"nothing"
    table = pa.table({"data": pa.array([good, bad], pa.large_binary())})
    result = decode_check(table, limits=LIMITS)
    assert result.reasons == [None, "wrong_type"]
    assert result.columns["width"].to_pylist() == [40, None]
    assert result.columns["mime"].to_pylist() == ["image/png", None]
    assert result.columns["sha256"][0].as_py() == sha256(good)
