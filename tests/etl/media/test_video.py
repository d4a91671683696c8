import io
from fractions import Fraction

import av
import numpy as np
import pytest

from etl.digits import motion
from etl.media.video import VideoLimits, probe, sampled_indices

RNG = np.random.default_rng(0)
MOTION = motion.random_motion(RNG, "train")
FRAMES = motion.render(MOTION)
VIDEO = motion.encode(FRAMES)
LOOSE = VideoLimits(min_side=16)


def encoded(frames: np.ndarray, codec: str, kind: str, rate: int = 8) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=rate)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()


def decoded(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_is_stored_unchanged() -> None:
    info = probe(VIDEO, LOOSE)
    assert (info.mime, info.width, info.height) == ("video/mp4", 96, 96)
    assert info.frames == MOTION.frames
    assert info.duration == MOTION.frames / motion.FRAMES_PER_SECOND
    assert info.data is None
    assert info.scores["duration"] == info.duration
    assert info.scores["motion"] > 1


def test_sampled_frames_are_the_middles_of_equal_segments() -> None:
    info = probe(VIDEO, VideoLimits(frames=5))
    assert (info.frames, info.duration) == (5, MOTION.frames / motion.FRAMES_PER_SECOND)
    whole, few = decoded(VIDEO), decoded(info.data)
    for number, frame in zip(sampled_indices(MOTION.frames, 5), few, strict=True):
        assert np.abs(frame.astype(int) - whole[number]).mean() < 3  # JPEG's loss
    again = probe(info.data, LOOSE)
    assert (again.frames, again.mime) == (5, "video/mp4")
    assert again.duration == pytest.approx(info.duration, rel=1e-3)
    assert probe(VIDEO, VideoLimits(frames=5)).data == info.data


def test_sampled_indices() -> None:
    assert sampled_indices(10, 5) == [1, 3, 5, 7, 9]
    assert sampled_indices(100, 1) == [50]
    assert sampled_indices(2, 5) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("codec", "kind", "mime"),
    [
        ("libvpx", "webm", "video/webm"),
        ("libx264", "matroska", "video/x-matroska"),
        ("mpeg4", "avi", "video/x-msvideo"),
    ],
)
def test_other_containers(codec: str, kind: str, mime: str) -> None:
    info = probe(encoded(FRAMES, codec, kind), LOOSE)
    assert (info.mime, info.frames) == (mime, MOTION.frames)


STILL = encoded(np.repeat(FRAMES[:1], 8, axis=0), "libx264", "mp4")


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"", {}, "empty_body"),
        (b"<html>no video</html>", {}, "wrong_type"),
        (b"#EXTM3U\nhttp://127.0.0.1/secret.ts\n", {}, "wrong_type"),
        (VIDEO[: len(VIDEO) // 2], {}, "truncated"),
        (encoded(FRAMES, "flv", "flv")[:30], {}, "truncated"),
        (encoded(FRAMES, "mpeg4", "mpegts")[:400], {}, "truncated"),
        (VIDEO, {"min_side": 97}, "too_small"),
        (VIDEO, {"max_pixels": 96 * 95}, "decompression_bomb"),
        (VIDEO, {"max_frames": 3}, "too_many_frames"),
        (VIDEO, {"min_frames": MOTION.frames + 1}, "too_few_frames"),
        (VIDEO, {"min_motion": 200.0}, "no_motion"),
        (VIDEO, {"min_seconds": 60.0, "max_seconds": 90.0}, "too_short"),
        (VIDEO, {"max_seconds": 0.5}, "too_long"),
        (STILL, {}, "no_motion"),
    ],
)
def test_invalid_videos_are_dropped_with_a_reason(data: bytes, limits: dict, reason: str) -> None:
    assert probe(data, VideoLimits(**{"min_side": 16, **limits})) == reason


def test_a_still_has_no_motion_and_a_single_frame_no_score() -> None:
    assert probe(STILL, VideoLimits(min_side=16, min_motion=0)).scores["motion"] < 0.25
    single = encoded(FRAMES[:1], "libx264", "mp4", rate=1)
    assert set(probe(single, LOOSE).scores) == {"duration"}


def test_damage_anywhere_in_a_file_raises_nothing() -> None:
    data = bytearray(VIDEO)
    for offset in range(40, len(data), 97):
        damaged = bytes(data[:offset]) + b"\xff" * 16 + bytes(data[offset + 16 :])
        found = probe(damaged, LOOSE)
        assert isinstance(found, str) or found.frames <= 4 * MOTION.frames


def test_width_and_height_are_not_swapped() -> None:
    stream = io.BytesIO()
    wide = np.concatenate([FRAMES, FRAMES], axis=2)
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=Fraction(8))
        track.height, track.width = wide.shape[1:3]
        track.pix_fmt = "yuv420p"
        for frame in wide:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    info = probe(stream.getvalue(), LOOSE)
    assert (info.width, info.height) == (192, 96)


def moving(count: int, side: int = 96) -> list[av.VideoFrame]:
    """Frames in which a bar moves."""
    frames = np.zeros((count, side, side, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 3 * number % side : 3 * number % side + 8] = 255
    return [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]


def cut_without_encoding(count: int, cut: int) -> bytes:
    """An MP4 whose edit list hides the first frames, as a cut without re-encoding leaves it."""
    stream = io.BytesIO()
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(stream, "w", format="mp4", options=options) as container:
        track = container.add_stream("libx264", rate=10, options={"bf": "0"})
        track.height = track.width = 96
        track.pix_fmt = "yuv420p"
        packets = [packet for frame in moving(count) for packet in track.encode(frame)]
        for packet in (*packets, *track.encode()):
            hidden = round(cut / (10 * packet.time_base))
            packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
            container.mux(packet)
    return stream.getvalue()


def test_an_edit_list_hides_frames() -> None:
    data = cut_without_encoding(50, 10)
    assert len(decoded(data)) == 40
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].frames == 50  # what the header says
    info = probe(data, LOOSE)
    assert (info.frames, info.duration, info.data) == (40, 4.0, None)
    few = decoded(probe(data, VideoLimits(min_side=16, frames=5)).data)
    shown = [decoded(data)[number].astype(int) for number in sampled_indices(40, 5)]
    assert max(np.abs(a - b).mean() for a, b in zip(few, shown, strict=True)) < 3
    assert probe(data[:-2000], LOOSE) in ("truncated", "corrupt")


def test_an_avi_whose_header_promises_a_frame_too_many() -> None:
    data = bytearray(encoded(FRAMES, "mpeg4", "avi"))
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        at = data.index(name) + offset
        assert int.from_bytes(data[at : at + 4], "little") == MOTION.frames
        data[at : at + 4] = (MOTION.frames + 1).to_bytes(4, "little")
    assert probe(bytes(data), LOOSE).frames == MOTION.frames
    for part in (0.5, 0.9):
        assert probe(bytes(data[: int(part * len(data))]), LOOSE) == "truncated"


def test_frames_that_change_their_size_half_way() -> None:
    """As VP8 does when a call's bandwidth changes."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="webm") as container:
        track = container.add_stream("libvpx", rate=10)
        track.height = track.width = 96
        track.pix_fmt = "yuv420p"
        for frame in moving(20):
            container.mux(track.encode(frame))
        container.mux(track.encode())
        small = av.CodecContext.create("libvpx", "w")
        small.height = small.width = 64
        small.pix_fmt, small.framerate, small.time_base = "yuv420p", Fraction(10), Fraction(1, 10)
        frames = moving(20, 64)
        for number, frame in enumerate(frames, 20):
            frame.pts = number
        packets = [packet for frame in (*frames, None) for packet in small.encode(frame)]
        for packet in packets:
            packet.time_base, packet.stream = Fraction(1, 10), track
            container.mux(packet)
    data = stream.getvalue()
    assert {frame.shape[0] for frame in decoded(data)} == {64, 96}
    info = probe(data, LOOSE)
    assert (info.frames, info.width, info.height) == (40, 96, 96)
    few = decoded(probe(data, VideoLimits(min_side=16, frames=5)).data)
    assert [frame.shape for frame in few] == [(96, 96, 3)] * 5


def test_frames_larger_than_the_header_says_are_not_decoded() -> None:
    """The header of the container says 96 × 96, that of the codec what is decoded."""
    large = np.repeat(np.repeat(FRAMES[:4], 4, axis=1), 4, axis=2)
    data = encoded(large, "libvpx", "webm")
    head = data.index(b"\xb0\x82\x01\x80\xba\x82\x01\x80")  # width and height in EBML
    data = data[: head + 2] + b"\x00\x60\xba\x82\x00\x60" + data[head + 8 :]
    limits = VideoLimits(min_side=16, max_pixels=100 * 100)
    assert probe(data, limits) in ("corrupt", "truncated")
    assert probe(data, LOOSE).frames == 4
