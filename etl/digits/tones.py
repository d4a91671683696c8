"""Sounds of the digits world: one to three digits dialled on a telephone, as DTMF tones.

A tone is two sines, one of its key's row and one of its column (ITU-T Q.23). Every telephone has
its own distortions, and telephones are split into train and held-out ones, so that generalisation
means unheard telephones.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLE_RATE = 8000
"""Samples per second, the telephone network's."""

MAX_SECONDS = 2.0
"""Maximum duration of a sound."""

MAX_TONES = 3
"""Maximum digits dialled in one sound."""

_ROWS = (697.0, 770.0, 852.0, 941.0)
_COLUMNS = (1209.0, 1336.0, 1477.0)
KEYS: tuple[tuple[float, float], ...] = (
    (_ROWS[3], _COLUMNS[1]),
    *((row, column) for row in _ROWS[:3] for column in _COLUMNS),
)
"""Digit → the frequencies of its two sines, in Hz (ITU-T Q.23, table 1)."""

_PHONES = 500
_HELD_OUT_SHARE = 0.2
_SEED = 20240125


@dataclass(frozen=True, kw_only=True)
class Phone:
    """The distortions of a telephone.

    Args:
        pitch: factor of every key's row and column frequency, within ±1 %.
        twist: how much louder the column's sine is than the row's, in dB.
        hum: frequency of the mains in Hz, and `hum_level` its amplitude.
        noise: standard deviation of its line noise.
    """

    pitch: tuple[tuple[float, float], ...]
    twist: float
    hum: float
    hum_level: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Dialling:
    """Distinct digits dialled on a telephone, in order, and the seed of all other randomness."""

    digits: tuple[int, ...]
    phone: int
    seed: int


@functools.cache
def phones() -> tuple[Phone, ...]:
    """All telephones."""
    rng = np.random.default_rng(_SEED)
    return tuple(
        Phone(
            pitch=tuple((float(a), float(b)) for a, b in rng.uniform(0.99, 1.01, (10, 2))),
            twist=float(rng.uniform(-4, 4)),
            hum=float(rng.choice((50, 60))),
            hum_level=float(rng.uniform(0, 0.05)),
            noise=float(rng.uniform(0.002, 0.05)),
        )
        for _ in range(_PHONES)
    )


def split(name: str) -> range:
    """Numbers of the telephones of `train` or `held_out`; each is in exactly one of them.

    `validation` and `test` are the halves of `held_out`, as of the scans.
    """
    held_out = round(_PHONES * _HELD_OUT_SHARE)
    parts = {"held_out": range(held_out), "train": range(held_out, _PHONES)}
    parts |= {"validation": parts["held_out"][::2], "test": parts["held_out"][1::2]}
    if name not in parts:
        raise ValueError(f"split {name!r}, want one of {sorted(parts)}")
    return parts[name]


def random_dialling(rng: np.random.Generator, split_name: str, most: int = MAX_TONES) -> Dialling:
    """One to `most` random distinct digits, dialled on a telephone of a split."""
    number = int(rng.integers(1, most + 1))
    return Dialling(
        digits=tuple(int(digit) for digit in rng.choice(10, size=number, replace=False)),
        phone=int(rng.choice(split(split_name))),
        seed=int(rng.integers(2**32)),
    )


def timing(dialling: Dialling) -> tuple[list[tuple[int, int]], int]:
    """Return the start and end of each tone, and the sound's length, all in samples."""
    return _timing(dialling, np.random.default_rng(dialling.seed))


def _timing(dialling: Dialling, rng: np.random.Generator) -> tuple[list[tuple[int, int]], int]:
    spans = []
    start = rng.uniform(0.05, 0.3)
    for _ in dialling.digits:
        end = start + rng.uniform(0.15, 0.4)
        spans.append((round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)))
        start = end + rng.uniform(0.06, 0.15)
    return spans, round(start * SAMPLE_RATE)


def render(dialling: Dialling) -> NDArray[np.float32]:
    """Return the waveform (samples,) in [-1, 1]: tones with random phases over hum and noise."""
    rng = np.random.default_rng(dialling.seed)
    spans, length = _timing(dialling, rng)
    phone = phones()[dialling.phone]
    level = 10 ** (rng.uniform(-18, 0) / 20)
    twist = 10 ** (phone.twist / 40)
    amplitudes = np.array((1 / twist, twist)) * 0.3
    seconds = np.arange(length) / SAMPLE_RATE
    wave = phone.hum_level * np.sin(2 * np.pi * phone.hum * seconds + rng.uniform(0, 2 * np.pi))
    wave += phone.noise * rng.standard_normal(length)
    for digit, (begin, end) in zip(dialling.digits, spans, strict=True):
        pitch = np.multiply(KEYS[digit], phone.pitch[digit])
        phases = rng.uniform(0, 2 * np.pi, 2)
        angles = 2 * np.pi * pitch * seconds[begin:end, None] + phases
        wave[begin:end] += np.sin(angles) @ amplitudes
    return np.clip(level * wave, -1, 1).astype(np.float32)


SINGLE_SECONDS = 0.16
"""Duration of a sound that a model is asked to make."""
_SINGLE_SPAN = (0.03, 0.13)


def render_single(digit: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the waveform (samples,) of one tone, as a model is asked to make it.

    Both sines begin with phase 0 after 30 ms of near silence: a spectrogram does not hold phases,
    so a vocoder can only learn those that follow from what it holds.
    """
    seconds = np.arange(round(SINGLE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    begin, end = _SINGLE_SPAN
    pitch = np.multiply(KEYS[digit], rng.uniform(0.995, 1.005, 2))
    twist = 10 ** (rng.uniform(-3, 3) / 40)
    sines = np.sin(2 * np.pi * (seconds[:, None] - begin) * pitch) @ (0.3 / twist, 0.3 * twist)
    wave = np.where((begin <= seconds) & (seconds < end), sines, 0.0)
    wave += rng.uniform(0.001, 0.006) * rng.standard_normal(len(wave))
    return (10 ** (rng.uniform(-12, 0) / 20) * wave).astype(np.float32)


def encode(wave: NDArray[np.float32], mime: str) -> bytes:
    """Encode a waveform of SAMPLE_RATE as `audio/wav` or `audio/flac`, 16 bits per sample."""
    stream = io.BytesIO()
    kind = {"audio/wav": "WAV", "audio/flac": "FLAC"}[mime]
    soundfile.write(stream, wave, SAMPLE_RATE, format=kind, subtype="PCM_16")
    return stream.getvalue()
