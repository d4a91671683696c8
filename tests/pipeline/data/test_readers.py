"""Readers of media: their output for each file format, and errors of one line for damage."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from etl.digits.subjects import sample
from etl.storage.schema import Medium
from model.presets import system
from pipeline.data import readers
from pipeline.data.readers import read_audio, read_image, read_medium, read_points, read_video
from pipeline.data.readers.video import frame_indices

MEDIA = Path(__file__).parents[4] / "shared" / "data"
real_media = pytest.mark.skipif(not MEDIA.is_dir(), reason="no real media in ../shared/data")
RNG = np.random.default_rng(0)


def medium(kind, number=0):
    return sample(kind, "captions", 0, number).media[0]


def cut(data):
    return data[: len(data) // 2]


# Images


def test_an_image_is_rotated_according_to_its_exif():
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90° clockwise
    stream = io.BytesIO()
    Image.new("L", (20, 10)).save(stream, "JPEG", exif=exif)
    image = read_image(stream.getvalue())
    assert image.size == (10, 20)
    assert image.mode == "RGB"


def test_a_damaged_image_is_an_error_of_one_line():
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    whole = stream.getvalue()
    with pytest.raises(OSError, match="truncated"):
        read_image(cut(whole))
    with pytest.raises(OSError, match="5 bytes that are not an image"):
        read_image(b"12345")
    names = whole.replace(b"IDAT", b"I(AT")
    with pytest.raises(OSError, match="not an image"):
        read_image(names)


# Videos


def test_the_middle_frame_of_each_segment_is_taken():
    assert frame_indices(12, 4) == [1, 4, 7, 10]
    assert frame_indices(8, 1) == [4]
    assert frame_indices(2, 5) == [0, 0, 1, 1, 1]
    assert frame_indices(7, 7) == list(range(7))


def decoded(data):
    with av.open(io.BytesIO(data)) as container:
        return [np.asarray(frame.to_image()) for frame in container.decode(video=0)]


@pytest.mark.parametrize("frames", [1, 3, 8, 30])
def test_frames_equal_those_of_decoding_the_whole_video(frames):
    data = medium("video").data
    everything = decoded(data)
    found = read_video(data, frames)
    assert len(found) == frames
    for image, number in zip(found, frame_indices(len(everything), frames), strict=True):
        assert np.array_equal(np.asarray(image), everything[number])


def clip(kind, codec, frames=40, **options):
    """Return a grey video whose frame i has the brightness 5 i."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=10, options=options)
        track.width, track.height = 64, 48
        track.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), 5 * number, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")],
)
def test_containers_with_and_without_timestamps_and_key_frames(kind, codec):
    data = clip(kind, codec, g="7", bf="2")
    found = [np.asarray(picture).mean() / 5 for picture in read_video(data, 8)]
    assert found == pytest.approx(frame_indices(40, 8), abs=1.01)


def test_a_video_s_rotation_is_applied():
    data = bytearray(clip("mp4", "libx264", frames=2))
    matrix = data.index(b"tkhd") + 4 + 40
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    assert read_video(bytes(data), 1)[0].size == (48, 64)


def test_a_damaged_video_is_an_error_of_one_line():
    data = medium("video").data
    for broken in (b"", b"no video", cut(data), data[:20] + bytes(len(data) - 20)):
        with pytest.raises(OSError, match="bytes that"):
            read_video(broken, 4)
    with pytest.raises(OSError, match="hold no video"):
        read_video(medium("audio", 1).data, 4)


def test_a_playlist_opens_nothing(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(clip("mpegts", "mpeg2video"))
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:9,", f"file://{secret}")
    playlist = "\n".join((*lines, "#EXT-X-ENDLIST"))
    with pytest.raises(OSError, match="cannot be decoded"):
        read_video(playlist.encode(), 4)


def test_the_size_of_videos_is_limited(monkeypatch):
    data = medium("video").data
    for name, limit in (("MAX_FRAMES", 5), ("MAX_PIXELS", 5000), ("MAX_DECODED", 20_000)):
        with monkeypatch.context() as patch:
            patch.setattr(readers.video, name, limit)
            with pytest.raises(ValueError, match=str(limit)):
                read_video(data, 4)


# Audio


def tone(rate, channels=1, seconds=1.0):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, axis=1)


def encoded(wave, rate, kind, subtype=None):
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=kind, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_audio_is_mixed_down_and_resampled(kind, rate, channels):
    wave = read_audio(encoded(tone(rate, channels), rate, kind), 16_000)
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(16_000, abs=2500)  # MP3 pads
    middle = wave[4000:12_000] * np.hanning(8000)
    assert np.abs(np.fft.rfft(middle)).argmax() == 220  # 2 Hz a bin
    assert np.abs(wave[4000:12_000]).max() == pytest.approx(0.5, abs=0.03)


def test_resampling_is_optional_and_channels_are_averaged():
    wave = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    assert read_audio(encoded(wave, 8000, "WAV", "FLOAT")).tolist() == [0.125] * 800
    assert len(read_audio(encoded(wave, 8000, "WAV", "FLOAT"), 16_000)) == 1600


def test_the_audio_track_of_a_container_is_read():
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        wave = tone(16_000).T.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), "fltp", layout="mono")
        frame.rate = 16_000
        container.mux(track.encode(frame))
        container.mux(track.encode())
    found = read_audio(stream.getvalue(), 8000)
    assert len(found) == pytest.approx(8000, abs=1100)
    assert np.abs(found[2000:6000]).max() == pytest.approx(0.5, abs=0.05)


def test_damaged_audio_is_an_error_of_one_line():
    for kind in ("WAV", "FLAC"):
        data = encoded(RNG.normal(0, 0.1, 8000), 8000, kind)
        with pytest.raises(OSError, match=r"truncated|cannot be decoded"):
            read_audio(cut(data), 16_000)
    with pytest.raises(OSError, match="cannot be decoded"):
        read_audio(b"neither", 16_000)
    with pytest.raises(OSError, match="hold no audio"):
        read_audio(medium("video").data, 16_000)
    with pytest.raises(ValueError, match="without samples"):
        read_audio(encoded(np.empty(0), 8000, "WAV"), 16_000)
    with pytest.raises(ValueError, match="not finite"):
        read_audio(encoded(np.full(10, np.nan), 8000, "WAV", "FLOAT"), 16_000)


def test_the_size_of_audio_is_limited(monkeypatch):
    monkeypatch.setattr(readers.audio, "MAX_SAMPLES", 100)
    with pytest.raises(ValueError, match="more than 100 samples"):
        read_audio(encoded(tone(8000), 8000, "WAV"))
    with pytest.raises(ValueError, match="1000000 samples per second"):
        read_audio(encoded(tone(8000), 1_000_000, "WAV"))


# Point clouds

COORDINATES = RNG.normal(size=(5, 3)).round(3)
COLOURS = RNG.integers(0, 256, (5, 3))
CLOUD = np.concatenate([COORDINATES, COLOURS / 255], axis=1)


def rows(*tables):
    joined = np.concatenate([table.astype(object) for table in tables], axis=1)
    return "\n".join(" ".join(map(str, row)) for row in joined)


def ply(order):
    header = (
        f"ply\nformat {order} 1.0\ncomment x\nelement camera 1\nproperty int16 id\n"
        "element vertex 5\nproperty double x\nproperty double y\nproperty double z\n"
        "property float confidence\nproperty uchar red\nproperty uchar green\n"
        "property uchar blue\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if order == "ascii":
        body = f"7\n{rows(COORDINATES, np.zeros((5, 1)), COLOURS)}\n3 0 1 2\n".encode()
    else:
        end = {"binary_little_endian": "<", "binary_big_endian": ">"}[order]
        body = struct.pack(f"{end}h", 7)
        for point, colour in zip(COORDINATES, COLOURS, strict=True):
            body += struct.pack(f"{end}3df3B", *point, 0, *colour)
        body += struct.pack(f"{end}B3i", 3, 0, 1, 2)
    return header.encode() + body


def array(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        array(CLOUD),
        array(CLOUD.astype(np.float32)),
        array(np.concatenate([COORDINATES, COLOURS], axis=1)),
        ply("ascii"),
        ply("ascii").replace(b"\n", b"\r\n"),
        ply("binary_little_endian"),
        ply("binary_big_endian"),
        f"COFF\n# five\n5 1 0\n\n{rows(COORDINATES, COLOURS, COLOURS[:, :1])}\n3 0 1 2\n".encode(),
        (
            "# a mesh\nv " + rows(COORDINATES, COLOURS / 255).replace("\n", "\nv ") + "\nf 1 2 3"
        ).encode(),
    ],
    ids=["npy", "npy32", "npy8bit", "ply", "crlf", "little", "big", "off", "obj"],
)
def test_every_format_gives_the_same_cloud(data):
    cloud = read_points(data)
    assert cloud.dtype == np.float32
    np.testing.assert_allclose(cloud, CLOUD, atol=1e-6)


def test_points_without_colour_are_grey():
    for data in (array(COORDINATES), f"OFF\n5 0 0\n{rows(COORDINATES)}".encode()):
        cloud = read_points(data)
        np.testing.assert_allclose(cloud[:, :3], COORDINATES, atol=1e-6)
        assert (cloud[:, 3:] == np.float32(0.4)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"solid stl", "9 bytes that are no points"),
        (b"glTF\0v 1 2 3", "that are no points"),
        (array(CLOUD)[:-8], "truncated: .* for an array"),
        (array(CLOUD).replace(b"(5, 6)", b"(5, 6("), "header is damaged"),
        (array(CLOUD[:, :2]), "want numbers"),
        (array(np.array([[None] * 3])), "want numbers"),
        (array(CLOUD[:0]), "without points"),
        (array(CLOUD * np.nan), "not finite"),
        (cut(ply("ascii")), "damaged|truncated"),
        (ply("binary_big_endian")[:-60], "truncated"),
        (ply("ascii").replace(b"vertex 5", b"vertex 50"), "truncated: 6 of 50"),
        (ply("ascii").replace(b"vertex 5", b"vertex -5"), "header is damaged"),
        (ply("ascii").replace(b" z\n", b" w\n"), "no x, y and z"),
        (ply("ascii").replace(b"double x", b"list uchar int x"), "list properties in its vertices"),
        (b"OFF\n5 0 0\n1 2 3", "truncated: 1 of 5"),
        (b"OFF\nmany", "number of vertices"),
        (b"v 1 2", "fewer than three"),
        (b"v 1 2 three", "not made of numbers"),
    ],
)
def test_a_damaged_cloud_is_an_error_of_one_line(data, message):
    with pytest.raises((OSError, ValueError), match=message) as caught:
        read_points(data)
    assert "\n" not in str(caught.value)


def test_a_header_with_a_wrong_size_allocates_nothing():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 6), }"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    with pytest.raises(OSError, match="truncated"):
        read_points(data)


# All kinds


@dataclass(frozen=True)
class AudioEncoder:
    kind: str = "audio_encoder"
    sample_rate: int = 16_000


@dataclass(frozen=True)
class Branch:
    encoder: object
    frames: int = 3


def test_a_medium_is_decoded_according_to_its_kind():
    vision, audio_branch = Branch(system("digits").model.inputs[0].encoder), Branch(AudioEncoder())
    image = read_medium(sample("image_audio", "dialogues", 0, 0).media[0], vision)
    assert image.size == (96, 96)
    assert [p.size for p in read_medium(medium("video"), vision)] == [(96, 96)] * 3
    audio = medium("audio")
    wave = read_medium(audio, audio_branch)
    assert len(wave) == pytest.approx(audio.duration * 16_000, abs=2)
    assert read_medium(medium("points"), vision).shape == (1024, 6)
    with pytest.raises(ValueError, match="'clip_vision' does not take audio"):
        read_medium(audio, vision)
    with pytest.raises(ValueError, match="does not take smell"):
        read_medium(Medium(kind="smell", data=b"", mime="", sha256=""), vision)


@real_media
def test_real_videos_are_read():
    for name, size, frames in (
        ("realshort.mp4", (320, 240), 36),
        ("newtonscradle.gif", (200, 150), 36),
    ):
        data = (MEDIA / "video" / "imageio" / name).read_bytes()
        everything = decoded(data)
        assert len(everything) == frames
        for image, number in zip(read_video(data, 5), frame_indices(frames, 5), strict=True):
            assert image.size == size
            assert np.array_equal(np.asarray(image), everything[number])


@real_media
def test_real_audio_is_read():
    for path in sorted((MEDIA / "audio" / "fsdd").glob("7_*_0.wav")):
        data = path.read_bytes()
        own, twice = read_audio(data), read_audio(data, 16_000)
        assert len(twice) == 2 * len(own)
        assert 0.02 < np.abs(twice).max() <= 1.1


@real_media
def test_real_meshes_are_read():
    found = {}
    for path in sorted((MEDIA / "pointcloud" / "trimesh").iterdir()):
        if path.suffix in (".ply", ".off", ".obj"):
            found[path.name] = len(read_points(path.read_bytes()))
    assert found == {
        "ballA.off": 1900,
        "bunny.ply": 8171,
        "chair_model.obj": 3186,
        "fandisk.obj": 2877,
        "fixed_top.ply": 2374,
        "fuze.obj": 502,
        "suzanne.ply": 1966,
    }
