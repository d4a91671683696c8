"""Log-mel filter-bank features, equal to those of Kaldi's `compute-fbank-feats`.

BEATs and ImageBind were trained on them. Kaldi's conventions: only complete frames; per frame mean
removal, pre-emphasis, window, power spectrum; mel triangles that are linear in mel, from 20 Hz to
half the sampling rate; natural logarithm, floored at float32's epsilon. There is no dither, so
results are deterministic.

Shapes: t samples, f frames, w samples of a frame, k frequencies, m mel bins.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_SECONDS = 0.025
SHIFT_SECONDS = 0.010
LOWEST_HERTZ = 20.0
PRE_EMPHASIS = 0.97

Window = Literal["povey", "hann"]


def fbank(waveform_t: Tensor, sample_rate: int, mel_bins: int, window: Window) -> Tensor:
    """Return the log-mel features (f, m) of a mono waveform, f = 1 + (t - frame) // shift.

    Args:
        waveform_t: samples (t,); the scale matters (Kaldi's is that of 16-bit integers). A
            waveform shorter than a frame is zero-padded to one frame.
        sample_rate: in hertz.
        mel_bins: number of triangles.
        window: `povey` is Kaldi's default, a Hann window to the power of 0.85.
    """
    length, shift = (round(seconds * sample_rate) for seconds in (FRAME_SECONDS, SHIFT_SECONDS))
    waveform_t = waveform_t.to(torch.float32)
    waveform_t = F.pad(waveform_t, (0, max(0, length - len(waveform_t))))
    frames_fw = waveform_t.unfold(0, length, shift)
    frames_fw = frames_fw - frames_fw.mean(dim=1, keepdim=True)
    # The first sample of a frame counts as its own predecessor.
    before_fw = torch.cat([frames_fw[:, :1], frames_fw[:, :-1]], dim=1)
    frames_fw = (frames_fw - PRE_EMPHASIS * before_fw) * _window(window, length)
    fft_size = 1 << (length - 1).bit_length()
    power_fk = torch.fft.rfft(frames_fw, fft_size).abs().square()
    mel_fm = power_fk @ _triangles(sample_rate, fft_size, mel_bins)
    return mel_fm.clamp_min(torch.finfo(torch.float32).eps).log()


def fit_frames(features_fm: Tensor, frames: int) -> Tensor:
    """Return the features truncated or zero-padded to a number of frames: (frames, m)."""
    return F.pad(features_fm[:frames], (0, 0, 0, max(0, frames - len(features_fm))))


@functools.cache
def _window(name: Window, length: int) -> Tensor:
    hann_w = torch.hann_window(length, periodic=False, dtype=torch.float64)
    return (hann_w**0.85 if name == "povey" else hann_w).to(torch.float32)


@functools.cache
def _triangles(sample_rate: int, fft_size: int, mel_bins: int) -> Tensor:
    """Return the mel triangles (k, m); the lowest may be too narrow to contain any frequency."""
    mel_k = _mel(torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size)
    lowest, highest = _mel(torch.tensor([LOWEST_HERTZ, sample_rate / 2], dtype=torch.float64))
    edges = lowest + torch.arange(mel_bins + 2) * (highest - lowest) / (mel_bins + 1)
    rise_km = (mel_k[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall_km = (edges[2:] - mel_k[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise_km, fall_km).clamp_min(0).to(torch.float32)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hertz / 700)
