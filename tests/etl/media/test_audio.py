import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from etl.digits import tones
from etl.media.audio import AudioLimits, probe

WAVE = tones.render(tones.random_dialling(np.random.default_rng(0), "train"))
WAV = tones.encode(WAVE, "audio/wav")
FLAC = tones.encode(WAVE, "audio/flac")
LIMITS = AudioLimits()


@pytest.mark.parametrize(("data", "mime"), [(WAV, "audio/wav"), (FLAC, "audio/flac")])
def test_a_sound_is_stored_unchanged(data: bytes, mime: str) -> None:
    info = probe(data, LIMITS)
    assert (info.mime, info.sample_rate, info.data) == (mime, 8000, None)
    assert info.duration == len(WAVE) / 8000


@pytest.mark.parametrize(
    ("kind", "mime"), [("OGG", "audio/ogg"), ("MP3", "audio/mpeg"), ("AIFF", "audio/aiff")]
)
def test_other_formats(kind: str, mime: str) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.tile(WAVE, 4), 8000, format=kind)
    info = probe(stream.getvalue(), LIMITS)
    assert info.mime == mime
    assert info.duration == pytest.approx(4 * len(WAVE) / 8000, abs=0.3)


def test_a_segment_is_cut_to_the_sample() -> None:
    info = probe(WAV, LIMITS, start=0.1, length=0.25)
    assert (info.mime, info.duration) == ("audio/flac", 0.25)
    cut, rate = soundfile.read(io.BytesIO(info.data), dtype="int16")
    whole, _ = soundfile.read(io.BytesIO(WAV), dtype="int16")
    assert rate == 8000
    assert np.array_equal(cut, whole[800:2800])
    rest = probe(WAV, LIMITS, start=0.1, length=60.0)
    assert rest.duration == (len(WAVE) - 800) / 8000


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"", {}, "empty_body"),
        (b"<html>no sound</html>", {}, "wrong_type"),
        (WAV[: len(WAV) // 2], {}, "truncated"),
        (FLAC[: len(FLAC) // 2], {}, "corrupt"),
        (WAV, {"min_seconds": 30.0}, "too_short"),
        (WAV, {"max_seconds": 0.2}, "too_long"),
        (tones.encode(WAVE * 0, "audio/wav"), {}, "silent"),
        (tones.encode(WAVE[:0], "audio/wav"), {}, "too_short"),
    ],
)
def test_invalid_sounds_are_dropped_with_a_reason(data: bytes, limits: dict, reason: str) -> None:
    assert probe(data, AudioLimits(**limits)) == reason


def test_a_segment_outside_the_sound() -> None:
    assert probe(WAV, LIMITS, start=60.0, length=10.0) == "segment_outside"


def test_non_finite_values() -> None:
    stream = io.BytesIO()
    broken = np.where(np.arange(len(WAVE)) == 7, np.nan, WAVE).astype(np.float32)
    soundfile.write(stream, broken, 8000, format="WAV", subtype="FLOAT")
    assert probe(stream.getvalue(), LIMITS) == "non_finite"


def test_one_loud_second_is_enough() -> None:
    quiet = np.zeros(8000 * 20, np.float32)
    quiet[90_000:96_000] = 0.1
    assert probe(tones.encode(quiet, "audio/wav"), LIMITS).duration == 20


def test_loudness_is_the_level_of_the_loudest_second() -> None:
    seconds = np.zeros((4, 8000), np.float32)
    seconds[2] = 0.1 * np.sqrt(2) * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    info = probe(tones.encode(seconds.ravel(), "audio/wav"), LIMITS)
    assert info.scores == {"duration": 4.0, "loudness_dbfs": pytest.approx(-20, abs=0.01)}


def test_recorded_speech() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "audio" / "fsdd"
    files = sorted(folder.rglob("*.wav"))[:20]
    if not files:
        pytest.skip(f"no recordings in {folder}")
    for file in files:
        info = probe(file.read_bytes(), LIMITS)
        assert (info.sample_rate, info.mime) == (8000, "audio/wav")
