"""Probing sounds: check and measure them, and cut a segment out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from etl.media.container import DropError, open_container, require, subtype

_BLOCK = 1 << 18
_MIMES = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mpeg", "AIFF": "aiff"}
_EXACT = ("WAV", "WAVEX", "FLAC", "AIFF")
"""libsndfile's names of the formats whose header has the exact number of samples."""

_MAX_CHANNELS = 64
_SOUNDS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"\xff\xfb", b"\xff\xf3", b"\x1aE\xdf\xa3")


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Which sounds are kept: seconds, and the minimum level (RMS of the loudest second, dBFS)."""

    min_seconds: float = 0.1
    max_seconds: float = 600.0
    min_level: float = -60.0


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """Properties of a sound, in seconds and Hz. `data` if it was re-encoded.

    `scores` are its `duration` and `loudness_dbfs`, the level that `AudioLimits` refers to.
    """

    mime: str
    duration: float
    sample_rate: int
    data: bytes | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def probe(
    data: bytes, limits: AudioLimits, *, start: float | None = None, length: float | None = None
) -> AudioInfo | str:
    """Decode a sound; returns its properties, or the reason for dropping it.

    Args:
        data: WAV, FLAC, OGG, MP3 and so on, or a container such as MP4 with an audio track.
        limits: which sounds are kept.
        start: start of the segment to keep, in seconds, stored as FLAC; None keeps all, unchanged.
        length: seconds of that segment; the sound may end before.
    """
    cut = None if start is None else (start, length)
    try:
        require(bool(data), "empty_body")
        mime, rate, samples, loudest, segment = _decode(data, limits.max_seconds, cut)
        require(not cut or samples > 0, "segment_outside")
        require(samples >= limits.min_seconds * rate, "too_short")
        level = float(20 * np.log10(max(loudest, 1e-9)))
        require(level >= limits.min_level, "silent")
    except DropError as drop:
        return str(drop)
    except OSError as error:
        return _damage(data, str(error))
    encoded = None if segment is None else _flac(segment, rate)
    return AudioInfo(
        mime="audio/flac" if encoded else mime,
        duration=samples / rate,
        sample_rate=rate,
        data=encoded,
        scores={"duration": samples / rate, "loudness_dbfs": level},
    )


def _damage(data: bytes, message: str) -> str:
    if message.startswith("truncated"):
        return "truncated"
    known = data.startswith(_SOUNDS) or data[4:8] == b"ftyp"
    return "corrupt" if known else "wrong_type"


def _decode(
    data: bytes, max_seconds: float, cut: tuple[float, float | None] | None
) -> tuple[str, int, int, float, NDArray[np.float32] | None]:
    """MIME type, Hz, samples, the loudest second's RMS, and the segment (samples, channels) if cut.

    Raises:
        OSError: truncated, damaged or not a sound.
        DropError: another reason.
    """
    mime, rate, blocks = _by_libsndfile(data) or _by_ffmpeg(data)
    first = round(cut[0] * rate) if cut else 0
    last = None if not cut or cut[1] is None else first + round(cut[1] * rate)
    seen = 0
    parts: list[NDArray[np.float32]] = []
    level = _Level(rate)
    kept = 0
    for block in blocks:
        require(bool(np.isfinite(block).all()), "non_finite")
        inside = block[max(0, first - seen) : None if last is None else max(0, last - seen)]
        seen += len(block)
        kept += len(inside)
        require(kept <= max_seconds * rate, "too_long")
        level.add(inside)
        if cut:
            parts.append(inside)
    return mime, rate, kept, level.loudest(), np.concatenate(parts) if parts else None


class _Level:
    """Root mean square of the loudest second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._rest = np.empty(0, np.float32)
        self._loudest = 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        mono = np.concatenate([self._rest, block.mean(axis=1)])
        whole = len(mono) // self._rate * self._rate
        for second in mono[:whole].reshape(-1, self._rate):
            self._loudest = max(self._loudest, _rms(second))
        self._rest = mono[whole:]

    def loudest(self) -> float:
        """The remainder counts as a second of its own."""
        return max(self._loudest, _rms(self._rest) if len(self._rest) else 0.0)


def _rms(wave: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


Blocks = Iterator[NDArray[np.float32]]


def _by_libsndfile(data: bytes) -> tuple[str, int, Blocks] | None:
    """None if libsndfile cannot read it. Blocks are (samples, channels)."""
    try:
        source = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return None
    if source.format not in _MIMES:
        return None
    return f"audio/{_MIMES[source.format]}", _sound_rate(source.samplerate), _read(source, data)


def _read(source: soundfile.SoundFile, data: bytes) -> Blocks:
    if not 0 < source.channels <= _MAX_CHANNELS:
        raise OSError(f"{source.channels} channels")
    samples = 0
    try:
        with source:
            for block in source.blocks(_BLOCK, dtype="float32", always_2d=True):
                samples += len(block)
                yield block
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from None
    if source.format in _EXACT and samples < source.frames:
        raise OSError(f"truncated: {samples} of {source.frames} samples")
    if data[:4] == b"RIFF":  # libsndfile does not complain about missing bytes
        size = int.from_bytes(data[4:8], "little") + 8
        if len(data) < size < 1 << 32:  # the header of an unbounded stream says 2^32 - 1
            raise OSError(f"truncated: {len(data)} of {size} bytes")


def _by_ffmpeg(data: bytes) -> tuple[str, int, Blocks]:
    with open_container(data) as container:
        if not container.streams.audio:
            raise OSError("no audio track")
        rate = _sound_rate(container.streams.audio[0].codec_context.sample_rate)
        return f"audio/{subtype(container)}", rate, _demux(data)


def _demux(data: bytes) -> Blocks:
    with open_container(data) as container:
        convert = av.AudioResampler(format="fltp")
        for frame in container.decode(container.streams.audio[0]):
            for part in convert.resample(frame):
                yield part.to_ndarray().T.astype(np.float32, copy=False)


def _sound_rate(rate: int) -> int:
    if not 0 < rate <= 384_000:
        raise OSError(f"{rate} samples a second")
    return rate


def _flac(wave: NDArray[np.float32], rate: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
