"""Normalising images: stored unchanged, or rotated, converted to RGB and shrunk."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from etl.dedup.perceptual_hash import hex_hash, perceptual_hash
from etl.media.decode import NormalizedImage, normalize_image
from etl.media.image import ImageLimits
from etl.media.sniff import is_polyglot, sniff
from etl.storage.schema import sha256
from tests.etl.download.web import archive, photo, pixel_bomb

LIMITS = ImageLimits(min_side=16, max_aspect=3, max_pixels=4_000_000)


def opened(image: NormalizedImage) -> Image.Image:
    return Image.open(io.BytesIO(image.medium.data))


def with_orientation(data: bytes, orientation: int) -> bytes:
    image = Image.open(io.BytesIO(data))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, quality=95)
    return stream.getvalue()


@pytest.mark.parametrize(("form", "mime"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_valid_images_are_stored_unchanged(form: str, mime: str) -> None:
    data = photo(form=form)
    for size in (None, 80):
        found = normalize_image(data, LIMITS, size)
        assert found.medium.data == data
        assert (found.medium.mime, found.medium.width, found.medium.height) == (
            f"image/{mime}",
            120,
            80,
        )
        assert (found.medium.sha256, found.notes) == (sha256(data), {})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_are_blurred_where_they_are_shown(orientation: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 240, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    data = with_orientation(stream.getvalue(), orientation)
    box = (0.1, 0.2, 0.3, 0.5)  # in the stored image, as img2dataset writes it
    plain = normalize_image(data, LIMITS, 100)
    blurred = normalize_image(data, LIMITS, 100, [box])
    assert blurred.notes["changed"].split(", ")[-1] == "faces blurred"
    assert "faces" not in plain.notes["changed"]
    marked = np.zeros((160, 240), np.uint8)
    marked[32:80, 24:72] = 255
    stored = Image.fromarray(marked)
    stored.getexif()[0x0112] = orientation
    shown = ImageOps.exif_transpose(stored).resize(opened(blurred).size)
    inside = np.asarray(shown) > 254
    before, after = (np.asarray(opened(one).convert("L"), float) for one in (plain, blurred))
    assert after[inside].std() < before[inside].std() / 3
    changed = np.abs(after - before) > 12  # more than JPEG's own loss
    assert changed[~inside].mean() < 0.2 < changed[inside].mean()


def test_an_image_without_faces_is_stored_unchanged() -> None:
    assert normalize_image(photo(), LIMITS, None, []).medium.data == photo()


def test_sideways_images_are_rotated_and_noted() -> None:
    data = with_orientation(photo(), 6)
    found = normalize_image(data, LIMITS, None)
    assert (found.medium.width, found.medium.height) == opened(found).size == (80, 120)
    assert found.notes == {
        "changed": "turned",
        "original_sha256": sha256(data),
        "original_mime": "image/jpeg",
        "original_width": "80",
        "original_height": "120",
    }
    upright = np.asarray(Image.open(io.BytesIO(photo())).rotate(-90, expand=True), float)
    assert np.abs(np.asarray(opened(found), float) - upright).mean() < 3
    assert opened(found).getexif().get(0x0112) is None


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_invalid_orientations_are_ignored(orientation: int) -> None:
    data = with_orientation(photo(), orientation)
    assert normalize_image(data, LIMITS, None).medium.data == data


def test_large_images_are_shrunk_by_their_shorter_side() -> None:
    data = photo(1600, 1000, quality=90)
    found = normalize_image(data, LIMITS, 100)
    assert opened(found).size == (found.medium.width, found.medium.height) == (160, 100)
    assert found.notes["changed"] == "shrunk"
    assert (found.notes["original_width"], found.notes["original_height"]) == ("1600", "1000")
    full = Image.open(io.BytesIO(data)).resize((160, 100), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(opened(found), float) - np.asarray(full, float)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "I;16", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    grey = Image.linear_gradient("L").resize((64, 48))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    else:
        image = grey.convert("RGB").convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    found = normalize_image(stream.getvalue(), LIMITS, None)
    assert found.notes["changed"] == "to RGB"
    assert opened(found).mode in ("RGB", "L")
    if mode not in ("1", "P"):  # which are dithered
        assert np.abs(np.asarray(opened(found).convert("L"), float) - np.asarray(grey)).mean() < 4


def test_transparent_pixels_become_white() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(stream, "PNG")
    assert opened(normalize_image(stream.getvalue(), LIMITS, None)).getpixel((5, 5)) == (255,) * 3


def test_other_formats_become_jpeg() -> None:
    found = normalize_image(photo(form="BMP"), LIMITS, None)
    assert (found.notes["changed"], found.medium.mime) == ("to JPEG", "image/jpeg")
    assert normalize_image(photo(form="GIF"), LIMITS, None).notes["changed"] == "to RGB, to JPEG"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_body"),
        (b"<html>", "wrong_type"),
        (photo()[:900], "truncated"),
        (photo(form="PNG")[:900], "truncated"),
        (pixel_bomb(), "decompression_bomb"),
        (photo(8, 8), "too_small"),
        (photo(200, 20), "aspect_too_large"),
        (photo() + archive(), "polyglot"),
        (photo() + b"<?php system($_GET['c']); ?>", "polyglot"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "corrupt"),
    ],
)
def test_invalid_images_are_dropped_with_a_reason(data: bytes, reason: str) -> None:
    for size in (None, 32):
        found = normalize_image(data, LIMITS, size)
        assert found == reason or (reason == "corrupt" and found in ("corrupt", "wrong_type"))


def distance(left: bytes, right: bytes) -> int:
    hashes = [normalize_image(data, LIMITS, None).phash for data in (left, right)]
    return (hashes[0] ^ hashes[1]).bit_count()


def test_hashes_of_near_duplicates_are_near_and_others_far() -> None:
    data = photo(300, 200)
    assert distance(data, photo(300, 200, quality=30)) <= 4
    assert distance(data, photo(600, 400)) <= 6
    assert distance(data, photo(300, 200, form="PNG")) <= 4
    assert min(distance(data, photo(300, 200, seed=seed)) for seed in range(1, 20)) > 12
    shrunk = normalize_image(data, LIMITS, 100).phash
    assert (shrunk ^ normalize_image(data, LIMITS, None).phash).bit_count() <= 4


def test_the_hash_is_of_64_bits_against_the_median() -> None:
    value = perceptual_hash(Image.open(io.BytesIO(photo())))
    assert value.bit_count() in (31, 32)
    assert len(hex_hash(value)) == 16
    assert int(hex_hash(value), 16) == value


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (photo(), "image/jpeg"),
        (photo(form="WEBP"), "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
        (b"xxxx\x00\x00\x00\x00WAVEfmt ", "application/octet-stream"),
        (b"\x00\x00\x00\x20ftypisom", "video/mp4"),
        (b"\x00\x00\x00\x20ftypM4A ", "audio/mp4"),
        (b"\x1a\x45\xdf\xa3", "video/webm"),
        (b"\xff\xfb\x90\x00", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"OggS", "audio/ogg"),
        (b"  <!DOCTYPE html>", "text/html"),
        (b"ply\nformat ascii 1.0", "model/ply"),
        (archive(), "application/zip"),
        (b"", "application/octet-stream"),
    ],
)
def test_mime_types_are_detected_from_bytes(data: bytes, mime: str) -> None:
    assert sniff(data) == mime


def test_plain_images_are_not_polyglots() -> None:
    assert not any(
        is_polyglot(photo(seed=seed, form=form)) for seed in range(20) for form in ("JPEG", "PNG")
    )


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_always_have_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        valid = photo(60, 40, form=form)
        for _ in range(150):
            data = np.frombuffer(valid, np.uint8).copy()
            reach = min(len(data), int(rng.choice([64, 400, len(data)])))
            data[rng.integers(0, reach, 5)] = rng.integers(0, 256, 5)
            found = normalize_image(data.tobytes(), LIMITS, 20)
            assert isinstance(found, (NormalizedImage, str))
    capfd.readouterr()  # libtiff prints its own messages


def png_with(name: bytes, content: bytes, *, valid: bool = True, data: bytes = b"") -> bytes:
    """A PNG with another chunk after its header, whose checksum may be wrong."""
    data = data or photo(form="PNG")
    check = zlib.crc32(name + content) ^ (not valid)
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    return data[:33] + chunk + data[33:]


def compressed(keyword: bytes, size: int, between: bytes = b"\0\0") -> bytes:
    return keyword + between + zlib.compress(bytes(size))


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (photo()[:-2], "end marker added"),
        (photo()[:-1], "end marker added"),
        (photo(progressive=True)[:-2], "end marker added"),
        (png_with(b"tEXt", b"Title\0picture", valid=False), "chunks removed"),
        (png_with(b"pHYs", bytes(9), valid=False), "chunks removed"),
        (png_with(b"zTXt", compressed(b"Raw", 3 << 20)), "chunks removed"),
        (png_with(b"iTXt", compressed(b"Raw", 3 << 20, b"\0\1\0\0\0")), "chunks removed"),
        (png_with(b"iCCP", compressed(b"profile", 3 << 20)), "chunks removed"),
        (png_with(b"pHYs", b"\0"), "chunks removed"),  # with a right checksum
        (png_with(b"tRNS", b"\0", data=png_with(b"cHRM", b"")), "chunks removed"),
    ],
)
def test_images_that_lack_no_pixels_are_repaired(data: bytes, change: str) -> None:
    found = normalize_image(data, LIMITS, None)
    assert found.notes["changed"] == change
    assert found.notes["original_sha256"] == sha256(data)
    assert (found.medium.width, found.medium.height) == (120, 80)
    form = "PNG" if data.startswith(b"\x89") else "JPEG"
    whole = photo(form=form, progressive=b"\xff\xc2" in data)
    assert np.array_equal(np.asarray(opened(found)), np.asarray(Image.open(io.BytesIO(whole))))
    again = normalize_image(data, LIMITS, 40)
    assert again.notes["changed"] == f"{change}, shrunk"
    assert again.notes["original_width"] == "120"


def test_damaged_pixels_are_not_repaired() -> None:
    critical = bytearray(photo(form="PNG"))
    critical[60] ^= 1  # in the pixels, whose checksum is now wrong
    for data in (photo()[:-4], photo(progressive=True)[:-40], bytes(critical)):
        assert normalize_image(data, LIMITS, None) in ("truncated", "corrupt", "wrong_type")


@pytest.mark.parametrize(
    "data", [photo(form="WEBP", exif=b"Exif\0\0no tags"), png_with(b"eXIf", b"no tags")]
)
def test_exif_that_cannot_be_read_is_removed(data: bytes) -> None:
    found = normalize_image(data, LIMITS, None)
    assert found.notes["changed"] == "EXIF removed"
    assert found.medium.mime == "image/jpeg"
    pixels = np.asarray(Image.open(io.BytesIO(photo())), float)
    assert np.abs(np.asarray(opened(found), float) - pixels).mean() < 6


@pytest.mark.parametrize(("form", "mime"), [("AVIF", "image/avif"), ("JPEG2000", "image/jp2")])
def test_newer_formats_become_jpeg(form: str, mime: str) -> None:
    data = photo(form=form)
    found = normalize_image(data, LIMITS, None)
    assert (found.medium.mime, found.notes["changed"]) == ("image/jpeg", "to JPEG")
    assert found.notes["original_mime"] == sniff(data) == mime
    pixels = np.asarray(Image.open(io.BytesIO(photo())), float)
    assert np.abs(np.asarray(opened(found), float) - pixels).mean() < 6


def tiff(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    unsigned = values.dtype == np.uint32  # which Pillow cannot write
    Image.fromarray(values.view(np.int32) if unsigned else values).save(stream, "TIFF")
    signed_tag, unsigned_tag = (struct.pack("<HHIH", 339, 3, 1, number) for number in (2, 1))
    return stream.getvalue().replace(*(signed_tag, unsigned_tag) if unsigned else (b"", b"", 0))


RAMP = np.tile(np.linspace(0, 1, 64), (48, 1))


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP.astype(np.float32)),
        tiff((RAMP * 1e30 - 5e29).astype(np.float32)),
        tiff((RAMP * (2**32 - 2) - 2**31).astype(np.int32)),
        tiff((RAMP * 4000).astype(np.int32)),
        tiff((RAMP * (2**32 - 1)).astype(np.uint32)),
    ],
)
def test_grey_levels_of_32_bits_are_scaled_to_their_range(data: bytes) -> None:
    found = normalize_image(data, LIMITS, None)
    assert found.notes["changed"] == "to RGB, to JPEG"
    assert np.abs(np.asarray(opened(found), float) - 255 * RAMP).max() < 4


def test_grey_levels_of_32_bits_are_rotated_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(np.float32)).save(stream, "TIFF", exif=exif)
    found = normalize_image(stream.getvalue(), LIMITS, None)
    assert found.notes["changed"] == "turned, to RGB, to JPEG"
    assert np.abs(np.asarray(opened(found), float) - 255 * RAMP[:, ::-1]).max() < 4


def test_grey_levels_of_one_value_or_none() -> None:
    assert opened(normalize_image(tiff(np.full((48, 64), 7.0, "f4")), LIMITS, None)).getextrema()
    assert normalize_image(tiff(np.full((48, 64), np.nan, "f4")), LIMITS, None) == "non_finite"


@pytest.mark.parametrize(
    ("mode", "colour", "key"),
    [("RGB", (10, 20, 30), (10, 20, 30)), ("L", 7, 7), ("1", 0, 0), ("I;16", 770, 770)],
)
def test_a_colour_that_stands_for_transparency_becomes_white(mode: str, colour, key) -> None:
    stream = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((24, 32), colour, np.uint16)).save(stream, "PNG")
        data = png_with(b"tRNS", struct.pack(">H", key), data=stream.getvalue())
    else:
        Image.new(mode, (32, 24), colour).save(stream, "PNG", transparency=key)
        data = stream.getvalue()
    found = normalize_image(data, LIMITS, None)
    assert found.notes["changed"] == "to RGB"
    assert np.asarray(opened(found)).min() == 255
