"""Videos, sounds and clouds of the digits world: what they show, and that they are repeatable."""

import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from etl.cli import UserError
from etl.digits import motion, solids, tones
from etl.digits.__main__ import run
from etl.digits.faults import WorldSize
from etl.digits.scenes import COLOURS, split
from etl.digits.shards import write_shards
from etl.digits.subjects import NAMES, PURPOSES, SUBJECTS, sample, sample_factories
from etl.storage.schema import PLACEHOLDERS, check
from etl.storage.shards import ShardSet

RNG = np.random.default_rng


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_sample_is_a_function_of_seed_purpose_and_number(name):
    for make in sample_factories(name).values():
        assert make(3, 5) == make(3, 5)
        assert make(3, 5).media != make(3, 6).media
        assert make(3, 5).media != make(4, 5).media
    assert sample(name, "dialogues", 3, 5).media != sample(name, "questions", 3, 5).media


@pytest.mark.parametrize("name", SUBJECTS)
def test_samples_satisfy_the_schema(name):
    for purpose, make in sample_factories(name).items():
        for number in range(8):
            found = make(0, number)
            check(found)
            heads = "".join(PLACEHOLDERS[medium.kind] for medium in found.media)
            assert found.turns[0].text.startswith(heads)
            assert len(found.turns) % 2 == 0
            assert bool(found.lineage) == (purpose != "captions" and len(found.turns) == 2)
            for turn in found.turns[1::2]:
                assert purpose == "captions" or " " not in turn.text  # one-word answers


def test_splits_share_no_scans_or_telephones():
    for purpose, name in (("train", "train"), ("held_out", "held_out")):
        scans, phones = set(split(name)), set(tones.split(name))
        for number in range(50):
            assert motion.random_motion(RNG(number), purpose).scan in scans
            assert solids.random_solid(RNG(number), purpose).scan in scans
            assert tones.random_dialling(RNG(number), purpose).phone in phones
    assert not set(tones.split("train")) & set(tones.split("held_out"))


@pytest.mark.parametrize("direction", motion.DIRECTIONS)
def test_crossings_go_from_edge_to_edge_through_the_centre(direction):
    subject = replace(motion.random_motion(RNG(3), "train"), direction=direction, crossing=True)
    boxes = motion.boxes(subject)
    along = 0 if motion.DIRECTIONS[direction][0] else 1
    room = motion.CANVAS - boxes[0, 2]
    assert sorted(boxes[[0, -1], along]) == [0, room]
    assert set(boxes[:, 1 - along]) == {room // 2}


@pytest.mark.parametrize("direction", motion.DIRECTIONS)
def test_a_video_moves_in_its_direction(direction):
    subject = next(
        m
        for m in (motion.random_motion(RNG(n), "train") for n in range(99))
        if m.direction == direction
    )
    with av.open(io.BytesIO(motion.encode(motion.render(subject)))) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == motion.FRAMES_PER_SECOND
    assert len(frames) == subject.frames
    centres = [np.argwhere(frame > 60 + np.median(frame)).mean(0) for frame in frames]
    rows, columns = centres[-1] - centres[0]
    far, near = (rows, columns) if motion.DIRECTIONS[direction][0] else (columns, rows)
    assert far * sum(motion.DIRECTIONS[direction]) > 35
    assert abs(near) < 3


def test_a_dialled_digit_has_its_two_frequencies():
    for number in range(20):
        subject = tones.random_dialling(RNG(number), "held_out")
        wave = tones.render(subject)
        spans, length = tones.timing(subject)
        assert len(wave) == length <= tones.MAX_SECONDS * tones.SAMPLE_RATE
        for digit, (begin, end) in zip(subject.digits, spans, strict=True):
            part = wave[begin:end] * np.hanning(end - begin)
            power = np.abs(np.fft.rfft(part, 1 << 14))
            hertz = np.fft.rfftfreq(1 << 14, 1 / tones.SAMPLE_RATE)
            for expected, lowest, highest in zip(
                tones.KEYS[digit], (650, 1100), (1000, 1600), strict=True
            ):
                band = (hertz > lowest) & (hertz < highest)
                found = hertz[band][power[band].argmax()]
                assert found == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("mime", ["audio/wav", "audio/flac"])
def test_sounds_match_their_columns(mime):
    found = next(
        medium
        for medium in (sample("audio", "captions", 0, n).media[0] for n in range(20))
        if medium.mime == mime
    )
    wave, rate = soundfile.read(io.BytesIO(found.data))
    assert rate == found.sample_rate
    assert found.duration == pytest.approx(len(wave) / rate)


def test_a_cloud_is_the_extruded_scan():
    for number in range(10):
        subject = solids.random_solid(RNG(number), "train")
        cloud = solids.render(subject)
        assert cloud.shape == (solids.POINTS, 6)
        assert cloud.dtype == np.float32
        _, high, deep = np.ptp(cloud[:, :3], axis=0)
        assert high > deep
        mean = cloud[:, 3:].mean(0) * 255
        nearest = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
        assert nearest == subject.colour
        loaded = np.load(io.BytesIO(solids.encode(cloud)), allow_pickle=False)
        assert np.array_equal(loaded, cloud)


def test_mixtures_need_both_media():
    for number in range(20):
        first, second = SUBJECTS["two_images"].random(RNG(number), "train").scenes
        assert len({m.digit for m in first.marks} & {m.digit for m in second.marks}) == 1
        both = SUBJECTS["image_audio"].random(RNG(number), "train")
        assert both.mark.digit == both.dialling.digits[0]
    assert [m.kind for m in sample("image_audio", "dialogues", 0, 0).media] == ["image", "audio"]
    with pytest.raises(ValueError, match="no captions"):
        sample("two_images", "captions", 0, 0)


def test_shards_are_written_once_and_again_for_another_seed(tmp_path: Path):
    rendered = []
    size = WorldSize(captions=3, dialogues=2, questions=2, seed=1)
    folders = write_shards(tmp_path, "audio", size, lambda: rendered.append(1))
    assert [folder.name for folder in folders] == list(PURPOSES)
    assert [len(ShardSet([folder])) for folder in folders] == [3, 2, 2]
    before = ShardSet(folders).fingerprint
    assert len(rendered) == 7
    write_shards(tmp_path, "audio", size, lambda: rendered.append(1))
    assert len(rendered) == 7
    write_shards(tmp_path, "audio", WorldSize(captions=3, dialogues=2, questions=2, seed=2))
    assert ShardSet(folders).fingerprint != before


def test_the_command_writes_shards_and_rejects_unknown_subjects(tmp_path: Path):
    few = ["--captions", "1", "--dialogues", "1", "--questions", "1"]
    run(["--output", str(tmp_path), *few, "--shards", "image", "two_images"])
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.arrow"))
    assert found == [
        "image/captions",
        "image/dialogues",
        "image/questions",
        "two_images/dialogues",
        "two_images/questions",
    ]
    assert not (tmp_path / "laion.parquet").exists()
    with pytest.raises(UserError, match="--shards smell: want some of image, video"):
        run(["--output", str(tmp_path), "--shards", "smell"])
    with pytest.raises(UserError, match="not served"):
        run(["--output", str(tmp_path), "--shards", *NAMES, "--serve", "0"])
