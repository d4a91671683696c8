"""Damaged media of every kind through a real job: rows or reasons, and nothing else.

    python -m tests.etl.test_mutations [--count N] [--seed N]     prints the counts as JSON

Each input is a medium that a real encoder has written, changed as disks, networks and authors of
files change them: bits flipped, the end cut off, blocks inserted, repeated, zeroed or swapped,
numbers in headers set to extremes, the head of another file. All inputs follow from the seed.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from etl.media.gather import MediaOptions
from etl.media.points import PointsLimits
from etl.media.video import VideoLimits
from etl.runtime.corpus import CorpusOptions
from etl.runtime.job import Job, run_job
from etl.sources.base import Format, RecordReader, pair
from etl.sources.files import json_lines
from etl.storage.manifest import Manifest, read_manifest
from tests.etl.download.web import photo

NIGHTLY = 10_000
"""Inputs of the nightly test."""

SHARE = 240
"""Inputs of the test that always runs."""

REASONS = {
    *("empty_body", "wrong_type", "truncated", "corrupt", "decoder_error", "decoder_crashed"),
    *("too_small", "aspect_too_large", "decompression_bomb", "polyglot", "non_finite"),
    *("too_short", "too_long", "silent", "no_motion", "too_few_frames", "too_many_frames"),
    *("wrong_shape", "too_few_points", "too_many_points", "all_points_equal"),
    *("duplicate_medium", "duplicate_record"),
}
"""What docs/etl.md and docs/corpora.md name as reasons of media."""

_RATE = 16_000
_FRAMES = 6


def images() -> Iterator[tuple[str, bytes]]:
    """One image of each codec and of the modes that are decoded in ways of their own."""
    for form, options in (
        *(("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})),
        *(("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}), ("AVIF", {}), ("JPEG2000", {})),
        *(("TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")),
    ):
        yield f"{form}{'-'.join(map(str, options.values()))}", photo(form=form, **options)
    picture = Image.open(io.BytesIO(photo()))
    grey = np.asarray(picture.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, form, options in (
        ("exif", picture, "JPEG", {"exif": exif}),
        ("cmyk", picture.convert("CMYK"), "JPEG", {}),
        ("palette", picture.quantize(16), "PNG", {"transparency": 3}),
        ("rgba", picture.convert("RGBA"), "PNG", {}),
        ("16bit", Image.fromarray(grey.astype(np.uint16) << 8), "PNG", {}),
        ("float", Image.fromarray(grey.astype(np.float32) / 255), "TIFF", {}),
        ("frames", picture, "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
    ):
        stream = io.BytesIO()
        image.save(stream, form, **options)
        yield name, stream.getvalue()


def encoded_video(codec: str, form: str, pixels: str) -> bytes:
    """A few frames of noise that moves."""
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=Fraction(5))
        track.height, track.width, track.pix_fmt = 48, 64, pixels
        for number in range(_FRAMES):
            picture = av.VideoFrame.from_ndarray(np.roll(frame, 4 * number, 1), format="rgb24")
            container.mux(track.encode(picture))
        container.mux(track.encode())
    return stream.getvalue()


def videos() -> Iterator[tuple[str, bytes]]:
    """One video of each container."""
    for codec, form, pixels in (
        *(("libx264", "mp4", "yuv420p"), ("libx264", "matroska", "yuv420p")),
        *(("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p")),
        *(("mpeg4", "avi", "yuv420p"), ("mjpeg", "avi", "yuvj420p")),
        *(("libx264", "mpegts", "yuv420p"), ("msmpeg4", "asf", "yuv420p")),
        *(("flv", "flv", "yuv420p"), ("gif", "gif", "rgb8"), ("mjpeg", "mov", "yuvj420p")),
    ):
        yield f"{codec}.{form}", encoded_video(codec, form, pixels)
    stream = io.BytesIO(encoded_video("mpeg4", "mp4", "yuv420p"))
    yield "mpeg4.mp4", stream.getvalue()


def encoded_sound(codec: str, form: str, layout: str, channels: int) -> bytes:
    """A second of noise."""
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal((1, 48_000 * channels)) * 0.1).astype(np.float32)
    stream = io.BytesIO()
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=48_000, layout=layout)
        frame = av.AudioFrame.from_ndarray(wave, format="flt", layout=layout)
        frame.sample_rate, frame.pts = 48_000, 0
        context = track.codec_context
        convert = av.AudioResampler(
            format=context.format, layout=layout, rate=48_000, frame_size=context.frame_size or 1024
        )
        for part in (*convert.resample(frame), *convert.resample(None)):
            container.mux(track.encode(part))
        container.mux(track.encode())
    return stream.getvalue()


def sounds() -> Iterator[tuple[str, bytes]]:
    """One sound of each format and codec."""
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(_RATE // 2) * 0.1
    for form, subtype in (
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM")),
        *(("WAV", "GSM610"), ("WAV", "ULAW"), ("WAV", "G721_32"), ("WAVEX", "PCM_24")),
        *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
        *(("AIFF", "PCM_16"), ("AIFF", "IMA_ADPCM"), ("RF64", "PCM_16")),
    ):
        stream = io.BytesIO()
        soundfile.write(stream, wave, _RATE, format=form, subtype=subtype)
        yield f"{subtype}.{form}", stream.getvalue()
    for codec, form, layout, channels in (
        *(("aac", "mp4", "mono", 1), ("aac", "mp4", "7.1", 8), ("aac", "adts", "stereo", 2)),
        *(("libopus", "webm", "stereo", 2), ("flac", "matroska", "7.1", 8)),
    ):
        yield f"{codec}{channels}.{form}", encoded_sound(codec, form, layout, channels)


def clouds() -> Iterator[tuple[str, bytes]]:
    """One point cloud of each format."""
    points = np.random.default_rng(0).standard_normal((100, 3)).astype("<f4")
    stream = io.BytesIO()
    np.save(stream, points)
    yield "npy", stream.getvalue()
    rows = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in points)
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    for order, body in (("ascii", rows.encode()), ("binary_little_endian", points.tobytes())):
        head = f"ply\nformat {order} 1.0\nelement vertex {len(points)}\n{axes}end_header\n"
        yield f"ply-{order}", head.encode() + body
    yield "off", f"OFF\n{len(points)} 0 0\n{rows}\n".encode()
    yield "obj", "".join(f"v {row}\n" for row in rows.splitlines()).encode()


KINDS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "image": images,
    "video": videos,
    "audio": sounds,
    "points": clouds,
}


def mutate(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Damage a medium once or several times; `other` is one of the same kind."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        data = _damage(rng, data, other)
    return data


def _damage(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    # Headers decide most, and are a small part of most files.
    reach = max(1, min(len(data), int(rng.choice([64, 400, len(data), len(data)]))))
    at = int(rng.integers(0, reach))
    size = int(2 ** rng.uniform(0, 10))
    damages: list[Callable[[], bytes]] = [
        lambda: _flip_bits(rng, data, reach),
        lambda: data[: int(rng.integers(0, len(data) + 1))],
        lambda: data[:at] + rng.bytes(size) + data[at:],  # an inserted block
        lambda: data[: at + size] + data[at:],  # a doubled block
        lambda: data[:at] + data[at + size :],  # a lost block
        lambda: data[:at] + rng.bytes(size) + data[at + size :],  # a block of noise
        lambda: data[:at] + (number := _extreme_number(rng)) + data[at + len(number) :],
        lambda: other[:at] + data[at:],  # the head of another file
    ]
    return damages[int(rng.integers(0, len(damages)))]()


def _flip_bits(rng: np.random.Generator, data: bytes, reach: int) -> bytes:
    flipped = bytearray(data)
    for _ in range(int(2 ** rng.uniform(0, 6)) if data else 0):
        flipped[int(rng.integers(0, reach))] ^= 1 << int(rng.integers(0, 8))
    return bytes(flipped)


def _extreme_number(rng: np.random.Generator) -> bytes:
    """An integer of a header, such as a size: 0, 1, the largest, or a negative one."""
    width = int(rng.choice([1, 2, 4, 8]))
    high, *rest = ((0, 0), (0, 1), (0x7F, 0xFF), (0x80, 0), (0xFF, 0xFF))[int(rng.integers(0, 5))]
    number = bytes([high, *rest * (width - 1)])
    return number[::-1] if rng.integers(0, 2) else number


def inputs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Kind and bytes of damaged media; every kind and every encoder in turn."""
    rng = np.random.default_rng(seed)
    media = {kind: list(make()) for kind, make in KINDS.items()}
    every = [(kind, data) for kind, found in media.items() for _, data in found]
    for number in range(count):
        kind, data = every[number % len(every)]
        others = media[kind]
        other = others[int(rng.integers(0, len(others)))][1]
        yield kind, mutate(rng, data, other)


def run(folder: Path, count: int, seed: int, *, workers: int | None = None) -> Manifest:
    """Run a job over damaged media; it must end, and its rows and drops add up to the input."""
    names = []
    with tarfile.open(folder / "media.tar", "w") as archive:
        for number, (kind, data) in enumerate(inputs(count, seed)):
            names.append([kind, f"{number}.{kind}"])
            info = tarfile.TarInfo(names[-1][1])
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    listing = folder / "list.jsonl"
    listing.write_text("\n".join(map(json.dumps, names)))
    fmt = Format(
        suffixes=(".jsonl",),
        rows=json_lines,
        parse=lambda row: [pair(*row, f"the medium {row[1]}")],
    )
    options = CorpusOptions(
        input=listing,
        output=folder / "out",
        media=(str(folder / "media.tar"),),
        min_side=16,
        rows_per_shard=64,
        workers=workers,
        executor="local",
    )
    media = MediaOptions(
        locations=options.media,
        image_size=32,
        video=VideoLimits(min_side=16, frames=2),
        points=PointsLimits(min_points=16),
    )
    run_job(
        Job(
            name="mutations",
            source=RecordReader("mutations", listing, fmt),
            filters=options.filters(),
            identity="record",
            options=options,
            media=media,
        )
    )
    manifest = read_manifest(options.output)
    assert manifest.input_rows == count == manifest.rows + sum(manifest.drops.values())
    assert set(manifest.drops) <= REASONS
    return manifest


def test_undamaged_media_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged is sound before: else the test below would show little."""
    monkeypatch.setattr(sys.modules[__name__], "mutate", lambda rng, data, other: data)
    count = sum(1 for make in KINDS.values() for _ in make())
    manifest = run(tmp_path, count, 0, workers=1)
    assert manifest.drops == {}


def test_a_share_of_damaged_media_gives_rows_or_reasons(tmp_path: Path) -> None:
    manifest = run(tmp_path, SHARE, 0, workers=2)
    assert manifest.rows > SHARE / 20
    assert len(manifest.drops) > 5


@pytest.mark.nightly(minutes=3)
def test_damaged_media_give_rows_or_reasons(tmp_path: Path) -> None:
    manifest = run(tmp_path, NIGHTLY, 1)
    assert manifest.rows > NIGHTLY / 20


def main() -> None:
    """Print the inputs, the rows, and the drops by reason, and the details of decoders' errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=NIGHTLY)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmloom-") as name:
        folder = Path(name)
        manifest = run(folder, options.count, options.seed, workers=options.workers)
        drops = pq.read_table(folder / "out" / "drops.parquet").to_pylist()
    details = collections.Counter(
        f"{Path(drop['url']).suffix[1:]}: {drop['detail']}"
        for drop in drops
        if drop["reason"].startswith("decoder")
    )
    summary = {"inputs": options.count, "job_deaths": 0, "rows": manifest.rows}
    summary |= {"drops": manifest.drops, "decoder": dict(details.most_common())}
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
