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
