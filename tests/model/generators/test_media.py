"""Targets of generators: cropped pictures and frames, and AudioLDM's spectrograms."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from model.generators import media
from model.spec.generators import AudioLdm, StableDiffusion, TextToVideo

TINY = StableDiffusion().tiny()


def test_a_picture_is_cropped_to_its_middle_square():
    picture = Image.new("RGB", (90, 30), (255, 0, 0))
    picture.paste((0, 0, 255), (30, 0, 60, 30))
    shown = media.preprocess(TINY, picture)
    assert shown.shape == TINY.shape
    assert shown.dtype == torch.uint8
    assert shown[2].min() == 255


def test_frames_are_cropped_to_the_videos_aspect_ratio():
    spec = TextToVideo().tiny()  # twice as wide as high
    tall = Image.new("RGB", (64, 96), (255, 0, 0))
    tall.paste((0, 255, 0), (0, 32, 64, 64))
    shown = media.preprocess(spec, [tall, Image.new("RGB", (64, 32)), tall])
    assert shown.shape == spec.shape
    assert shown[0, 1].min() == 255
    assert not shown[1].any()
    assert torch.equal(shown[0], shown[2])


def test_a_spectrogram_is_audioldms():
    """Magnitudes on Slaney's scale (librosa's default), as transformers computes them."""
    spec = replace(AudioLdm(), seconds=1.0)
    draw = np.random.default_rng(0)
    wave = (0.3 * draw.normal(size=16_000) + 0.1).astype(np.float32)
    found = media.preprocess(spec, wave)
    wave = wave - wave.mean()
    wanted = spectrogram(
        0.5 * wave / np.abs(wave).max(),
        window_function(1024, "hann"),
        frame_length=1024,
        hop_length=160,
        fft_length=1024,
        power=1.0,
        center=True,
        pad_mode="reflect",
        mel_filters=mel_filter_bank(513, 64, 0.0, 8000.0, 16_000, "slaney", "slaney"),
        mel_floor=1e-5,
        log_mel="log",
    ).T[:100]
    assert found.shape == spec.shape == (1, 100, 64)
    torch.testing.assert_close(found[0], torch.from_numpy(wanted).float(), atol=1e-3, rtol=1e-4)


def test_a_sound_is_cut_or_padded():
    spec = replace(AudioLdm(), seconds=0.5)
    short, long = (media.preprocess(spec, np.ones(n, np.float32)) for n in (100, 90_000))
    assert short.shape == long.shape == spec.shape
    silence = media.preprocess(spec, np.zeros(0, np.float32))
    torch.testing.assert_close(silence, torch.full(spec.shape, float(np.log(1e-5))))
