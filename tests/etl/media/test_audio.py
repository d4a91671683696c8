import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from etl.digits import tones
from etl.media.audio import AudioLimits, probe
from etl.storage.schema import sha256
from tests.etl.test_mutations import encoded_sound

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


def written(wave: np.ndarray, rate: int = 8000, **options: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, **{"format": "WAV", **options})
    return stream.getvalue()


def with_sizes(data: bytes, riff: int, samples: int) -> bytes:
    """A WAV that states these sizes of the file and of its samples, in bytes."""
    at = data.index(b"data") + 4
    sizes = (size.to_bytes(4, "little") for size in (riff, samples))
    return data[:4] + next(sizes) + data[8:at] + next(sizes) + data[at + 4 :]


BYTES = 2 * len(WAVE)
ODD = written(WAVE[:8001], subtype="PCM_U8")


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        (with_sizes(WAV, len(WAV) - 7, BYTES), True),  # counts a pad byte that is not there
        (ODD[:-1], True),
        (with_sizes(ODD, len(ODD) - 9, 8001), False),  # does not count the one that is
        (with_sizes(WAV, 0, BYTES), False),
        (with_sizes(WAV, 0, 0), True),
        (with_sizes(WAV, 1 << 31, BYTES), True),
        (with_sizes(WAV, (1 << 31) + 36, 1 << 31), True),
        (with_sizes(WAV, (1 << 31) - 1, (1 << 31) - 37), True),
        (with_sizes(WAV, (1 << 32) - 1, (1 << 32) - 1), False),
    ],
)
def test_sizes_in_a_header_do_not_count_if_the_samples_are_whole(
    data: bytes, changed: bool
) -> None:
    info = probe(data, LIMITS)
    wave = WAVE[:8001] if len(data) in (len(ODD), len(ODD) - 1) else WAVE
    assert info.duration == len(wave) / 8000
    stored = info.data or data
    assert len(soundfile.read(io.BytesIO(stored))[0]) == len(wave)
    assert int.from_bytes(stored[4:8], "little") == len(stored) - 8 or not changed
    expected = {"changed": "sizes in the header", "original_sha256": sha256(data)}
    assert info.notes == (expected if changed else {})


def test_an_avi_is_not_taken_for_a_wav() -> None:
    data = b"RIFF" + bytes(4) + b"AVI LIST" + bytes(4) + b"data" + bytes(40)
    assert probe(data, LIMITS) == "corrupt"


def test_sizes_of_an_rf64_do_not_count_in_another_wav() -> None:
    large = b"ds64" + (28).to_bytes(4, "little") + b"\xff" * 28
    data = with_sizes(WAV[:12] + large + WAV[12:], 1 << 31, BYTES)
    assert probe(data, LIMITS).duration == len(WAVE) / 8000


@pytest.mark.parametrize("data", [WAV[:-2], with_sizes(WAV, len(WAV), BYTES + 2), ODD[:-2]])
def test_missing_samples_are_noticed_whatever_the_header_says(data: bytes) -> None:
    assert probe(data, LIMITS) == "truncated"


def test_a_flac_of_a_stream_is_given_its_length() -> None:
    """Its header has no number of samples; libsndfile cannot read it."""
    data = FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:]
    info = probe(data, LIMITS)
    assert info.duration == len(WAVE) / 8000
    assert info.notes["changed"] == "length in the header"
    assert info.data == FLAC


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_codecs_in_which_nobody_can_seek(subtype: str) -> None:
    info = probe(written(WAVE, subtype=subtype), LIMITS)
    assert (info.mime, info.data) == ("audio/wav", None)
    assert info.duration == pytest.approx(len(WAVE) / 8000, abs=0.1)


NOISE = np.random.default_rng(0).standard_normal((32_000, 8)) * 0.1


def test_eight_channels_of_wav_and_of_aac() -> None:
    """PyAV reads beyond the end of eight planes, which crashes now and then."""
    data = written(NOISE, 16_000, format="RF64", subtype="PCM_16")
    info = probe(data, LIMITS)
    assert (info.mime, info.duration) == ("audio/wav", 2.0)
    assert info.scores["loudness_dbfs"] == pytest.approx(-20, abs=0.2)
    assert probe(data[:-9], LIMITS) == "truncated"
    info = probe(encoded_sound("aac", "mp4", "7.1", 8), LIMITS)
    assert (info.mime, info.sample_rate) == ("audio/mp4", 48_000)
    assert info.duration == pytest.approx(1, abs=0.05)
    assert info.scores["loudness_dbfs"] == pytest.approx(-20, abs=3)
    assert probe(encoded_sound("flac", "matroska", "7.1", 8), LIMITS).duration == 1


def test_a_stream_that_changes_on_the_way_keeps_its_first_rate_and_channels() -> None:
    """As radio streams do: AAC frames describe themselves."""
    first, second = (
        encoded_sound("aac", "adts", *layout) for layout in (("mono", 1), ("stereo", 2))
    )
    info = probe(first + second, LIMITS)
    assert info.sample_rate == 48_000
    assert info.duration == pytest.approx(2, abs=0.1)
    cut = probe(first + second, LIMITS, start=0.5, length=1.2)
    wave, _ = soundfile.read(io.BytesIO(cut.data), always_2d=True)
    assert wave.shape == (57_600, 1)


def test_levels_are_those_of_the_loudest_channel() -> None:
    """Mixed, channels in anti-phase cancel each other out."""
    mono = probe(written(WAVE, subtype="FLOAT"), LIMITS).scores["loudness_dbfs"]
    for other in (-WAVE, WAVE, 0 * WAVE):
        stereo = written(np.stack([WAVE, other], axis=1), subtype="FLOAT")
        assert probe(stereo, LIMITS).scores["loudness_dbfs"] == pytest.approx(mono, abs=1e-6)
