"""Audio: any format that libsndfile or FFmpeg reads, to a mono waveform."""

from __future__ import annotations

import io
from math import gcd

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.data.readers.container import open_container

MAX_SAMPLES = 1 << 28
"""Largest number of samples in all channels: 46 minutes in stereo at 48 kHz."""

MAX_RATE = 384_000
"""Largest sample rate in Hz."""

_BLOCK = 1 << 20
_EXACT = ("WAV", "WAVEX", "FLAC", "AIFF", "RF64", "W64")
"""libsndfile's names of the formats whose header has the exact number of samples."""


def read_audio(data: bytes, sample_rate: int | None = None) -> NDArray[np.float32]:
    """Return the mean of all channels (samples,), resampled by a polyphase filter.

    Args:
        data: WAV, FLAC, OGG, MP3 and the like, or a container such as MP4 with an audio track.
        sample_rate: of the result, in Hz; None keeps the file's.

    Raises:
        OSError: truncated, damaged, or no audio.
        ValueError: longer than the limit above, empty, or with values that are not finite.
    """
    try:
        wave, rate = _read_libsndfile(data)
    except soundfile.LibsndfileError:
        wave, rate = _read_ffmpeg(data)
    if not len(wave):
        raise ValueError("audio without samples")
    if not np.isfinite(wave).all():
        raise ValueError("audio with values that are not finite")
    if sample_rate is not None and sample_rate != rate:
        # Imported here: it takes longer to import than all other readers together.
        from scipy.signal import resample_poly  # noqa: PLC0415

        common = gcd(sample_rate, rate)
        wave = resample_poly(wave, sample_rate // common, rate // common)
    return wave.astype(np.float32)


def _read_libsndfile(data: bytes) -> tuple[NDArray[np.float32], int]:
    with soundfile.SoundFile(io.BytesIO(data)) as source:
        rate = _check_limits(source.samplerate, source.frames * source.channels)
        blocks = []
        # Not `blocks`, which seeks: some codecs (GSM 6.10) cannot.
        while len(block := source.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
        read = sum(map(len, blocks))
        if source.format in _EXACT and read < source.frames:
            raise OSError(f"truncated: {read} of {source.frames} samples")
    _check_riff(data)
    return np.concatenate([np.empty(0, np.float32), *blocks]), rate


def _check_riff(data: bytes) -> None:
    """Raise OSError for a truncated WAV file, which libsndfile would accept."""
    if data[:4] == b"RIFF":
        size = int.from_bytes(data[4:8], "little") + 8
        if len(data) < size < 1 << 32:  # 2^32 - 1 in a stream of unknown length
            raise OSError(f"truncated: {len(data)} of {size} bytes")


def _read_ffmpeg(data: bytes) -> tuple[NDArray[np.float32], int]:
    with open_container(data) as container:
        if not container.streams.audio:
            raise OSError(f"{len(data)} bytes that hold no audio")
        track = container.streams.audio[0]
        rate = track.codec_context.sample_rate
        # Not planar: PyAV reads beyond the end of eight or more planes.
        resampler = av.AudioResampler(format="flt")
        blocks = []
        samples = 0
        for frame in container.decode(track):
            for block in resampler.resample(frame):
                block_sc = block.to_ndarray().reshape(-1, block.layout.nb_channels)
                samples += block_sc.size
                _check_limits(rate, samples)
                blocks.append(block_sc.mean(axis=1))
    return np.concatenate([np.empty(0, np.float32), *blocks]), rate


def _check_limits(rate: int, samples: int) -> int:
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"{rate} samples per second, want 1 to {MAX_RATE}")
    if samples > MAX_SAMPLES:
        raise ValueError(f"more than {MAX_SAMPLES} samples in all channels")
    return rate
