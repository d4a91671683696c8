"""Log-mel features: equal to Kaldi's, and to a direct evaluation of the definition."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.encoders.fbank import fbank, fit_frames

RECORDED = Path(__file__).parents[1] / "recorded" / "fbank.safetensors"
RATE = 16_000


def slow_fbank(waveform, mel_bins):
    """Return one frame by the definition: a discrete Fourier sum, triangles in mel."""
    frame = waveform[:400].double() - waveform[:400].double().mean()
    emphasised = frame - 0.97 * torch.cat([frame[:1], frame[:-1]])
    window = (0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(400) / 399)) ** 0.85
    angles = 2 * math.pi * torch.outer(torch.arange(257), torch.arange(400)) / 512
    shaped = emphasised * window
    power = (angles.cos() @ shaped.float()).square() + (angles.sin() @ shaped.float()).square()

    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    step = (mel(RATE / 2) - mel(20)) / (mel_bins + 1)
    energies = []
    for number in range(mel_bins):
        centre = mel(20) + (number + 1) * step
        weights = [max(0.0, 1 - abs(mel(k * RATE / 512) - centre) / step) for k in range(257)]
        energies.append(max(float(power @ torch.tensor(weights)), 2**-23))
    return torch.tensor(energies).log()


@pytest.mark.parametrize(("window", "scale"), [("povey", 2**15), ("hann", 1.0)])
def test_features_equal_kaldis(window, scale):
    recorded = load_file(RECORDED)
    features = fbank(recorded["waveform"] * scale, RATE, 40, window)
    assert torch.allclose(features, recorded[window], atol=2e-4, rtol=0)


def test_features_equal_the_definition():
    waveform = load_file(RECORDED)["waveform"] * 2**15
    features = fbank(waveform, RATE, 128, "povey")
    assert torch.allclose(features[0], slow_fbank(waveform, 128), atol=2e-3, rtol=0)


def test_only_whole_frames_count_and_a_short_clip_gives_one():
    assert fbank(torch.zeros(400 + 160 * 3 + 159), RATE, 8, "povey").shape == (4, 8)
    assert fbank(torch.zeros(7), RATE, 8, "povey").shape == (1, 8)


def test_silence_gives_the_floor():
    features = fbank(torch.zeros(800), RATE, 8, "povey")
    assert torch.equal(features, torch.full((3, 8), math.log(2**-23)))


def test_features_are_truncated_or_padded():
    features = torch.ones(3, 2)
    assert fit_frames(features, 2).shape == (2, 2)
    longer = fit_frames(features, 5)
    assert longer.sum() == 6
    assert not longer[3:].any()
