"""Probing sounds: check and measure them, and cut a segment out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from etl.media.container import DropError, open_container, require, subtype
from etl.media.repair import Repaired, repair_wav
from etl.storage.schema import sha256

_BLOCK = 1 << 18
_MIMES = {
    **{"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "FLAC": "flac"},
    **{"OGG": "ogg", "MP3": "mpeg", "AIFF": "aiff"},
}
_EXACT = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF")
"""libsndfile's names of the formats whose header has the exact number of samples."""

_MAX_CHANNELS = 64
_FLAC_COUNT = slice(21, 26)
"""A FLAC's bytes with the number of its samples, in the last 36 bits (RFC 9639, section 8.2)."""

_SOUNDS = (
    b"RIFF",
    b"RF64",
    b"fLaC",
    b"OggS",
    b"ID3",
    b"FORM",
    b"\xff\xfb",
    b"\xff\xf3",
    b"\x1aE\xdf\xa3",
)


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Which sounds are kept: seconds, and the minimum level (RMS of the loudest second, dBFS)."""

    min_seconds: float = 0.1
    max_seconds: float = 600.0
    min_level: float = -60.0


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """Properties of a sound, in seconds and Hz. `data` if it was re-encoded or repaired.

    `scores` are its `duration` and `loudness_dbfs`, the level that `AudioLimits` refers to; `notes`
    go into the record's lineage, as those of `etl.media.decode.NormalizedImage` do.
    """

    mime: str
    duration: float
    sample_rate: int
    data: bytes | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


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
        repaired = repair_wav(data)
        whole = repaired.data if repaired else data
        mime, rate, samples, loudest, segment = _decode(whole, limits.max_seconds, cut)
        require(not cut or samples > 0, "segment_outside")
        require(samples >= limits.min_seconds * rate, "too_short")
        level = float(20 * np.log10(max(loudest, 1e-9)))
        require(level >= limits.min_level, "silent")
    except DropError as drop:
        return str(drop)
    except OSError as error:
        return _damage(data, str(error))
    scores = {"duration": samples / rate, "loudness_dbfs": level}
    if segment is not None:
        cut_out = _flac(segment, rate)
        return AudioInfo(
            mime="audio/flac",
            duration=samples / rate,
            sample_rate=rate,
            data=cut_out,
            scores=scores,
        )
    repaired = repaired or _counted_flac(data, samples)
    changed = {"changed": repaired.change, "original_sha256": sha256(data)} if repaired else {}
    return AudioInfo(
        mime=mime,
        duration=samples / rate,
        sample_rate=rate,
        data=repaired.data if repaired else None,
        scores=scores,
        notes=changed,
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
    """Root mean square of the loudest second of the loudest channel.

    Channels are not mixed: in anti-phase they would cancel each other out.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._rest: NDArray[np.float32] | None = None  # (channels, samples)
        self._loudest = 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        channels = block.T if self._rest is None else np.hstack([self._rest, block.T])
        whole = channels.shape[1] // self._rate * self._rate
        for first in range(0, whole, self._rate):
            self._loudest = max(self._loudest, _rms(channels[:, first : first + self._rate]))
        self._rest = channels[:, whole:]

    def loudest(self) -> float:
        """The remainder counts as a second of its own."""
        if self._rest is None or not self._rest.size:
            return self._loudest
        return max(self._loudest, _rms(self._rest))


def _rms(channels: NDArray[np.float32]) -> float:
    """Of the loudest of the channels (channels, samples)."""
    return max(
        float(np.sqrt(np.mean(np.square(np.ascontiguousarray(wave), dtype=np.float64))))
        for wave in channels
    )


Blocks = Iterator[NDArray[np.float32]]


def _by_libsndfile(data: bytes) -> tuple[str, int, Blocks] | None:
    """None if libsndfile cannot read it. Blocks are (samples, channels)."""
    try:
        source = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return None
    if source.format not in _MIMES or _uncounted(data):
        return None
    return f"audio/{_MIMES[source.format]}", _sound_rate(source.samplerate), _read(source)


def _read(source: soundfile.SoundFile) -> Blocks:
    if not 0 < source.channels <= _MAX_CHANNELS:
        raise OSError(f"{source.channels} channels")
    samples = 0
    try:
        with source:
            # Not `blocks`, which seeks: some codecs (GSM 6.10) cannot.
            while len(block := source.read(_BLOCK, dtype="float32", always_2d=True)):
                samples += len(block)
                yield block
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from None
    if source.format in _EXACT and samples < source.frames:
        raise OSError(f"truncated: {samples} of {source.frames} samples")


def _by_ffmpeg(data: bytes) -> tuple[str, int, Blocks]:
    with open_container(data) as container:
        if not container.streams.audio:
            raise OSError("no audio track")
        rate = _sound_rate(container.streams.audio[0].codec_context.sample_rate)
        return f"audio/{subtype(container)}", rate, _demux(data)


def _demux(data: bytes) -> Blocks:
    """All blocks have the first one's rate and channels, whatever a stream changes on the way."""
    with open_container(data) as container:
        convert: av.AudioResampler | None = None
        layout: av.AudioLayout | None = None
        rate, setup = 0, None
        for frame in container.decode(container.streams.audio[0]):
            layout, rate = layout or frame.layout, rate or _sound_rate(frame.sample_rate)
            if layout.nb_channels > _MAX_CHANNELS:
                raise OSError(f"{layout.nb_channels} channels")
            if setup != (setup := (frame.format.name, frame.layout.name, frame.sample_rate)):
                yield from _packed(convert.resample(None) if convert else (), layout)
                # Not planar: PyAV reads beyond the end of eight or more planes.
                convert = av.AudioResampler(format="flt", layout=layout, rate=rate)
            assert convert is not None  # there is no setup yet
            yield from _packed(convert.resample(frame), layout)
        if convert and layout:
            yield from _packed(convert.resample(None), layout)


def _packed(frames: Sequence[av.AudioFrame], layout: av.AudioLayout) -> Blocks:
    for frame in frames:
        yield frame.to_ndarray().astype(np.float32, copy=False).reshape(-1, layout.nb_channels)


def _sound_rate(rate: int) -> int:
    if not 0 < rate <= 384_000:
        raise OSError(f"{rate} samples a second")
    return rate


def _uncounted(data: bytes) -> bool:
    """Whether it is a FLAC of a stream, which libsndfile cannot read: its header has no length."""
    return data.startswith(b"fLaC") and not int.from_bytes(data[_FLAC_COUNT], "big") & (1 << 36) - 1


def _counted_flac(data: bytes, samples: int) -> Repaired | None:
    """Such a FLAC with the number of its samples, so that others can read it."""
    if not _uncounted(data):
        return None
    count = int.from_bytes(data[_FLAC_COUNT], "big") | samples
    head, tail = data[: _FLAC_COUNT.start], data[_FLAC_COUNT.stop :]
    return Repaired(data=head + count.to_bytes(5, "big") + tail, change="length in the header")


def _flac(wave: NDArray[np.float32], rate: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
