"""Media of generators: targets from decoded media, latents from targets, media from latents.

Shapes: g media, f frames of a video or of a spectrogram, c channels, hw sides in pixels, yx sides
of the latents, t samples of a sound, m mel bins, k frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from model.encoders import pictures
from model.spec.generators import GeneratorSpec, SoundDiffusion, TextToVideo
from model.spec.image_processor import HALF, ImageProcessor

_FFT = 1024
_HIGHEST_HERTZ = 8000.0
_FLOOR = 1e-5
_PEAK = 0.5
"""Of AudioLDM's spectrograms (haoheliu/AudioLDM, `audioldm/audio/`)."""


def preprocess(
    spec: GeneratorSpec, raw: Image.Image | Sequence[Image.Image] | NDArray[np.float32]
) -> Tensor:
    """Return the training target (*shape) for a decoded medium.

    Args:
        spec: of the generator.
        raw: an RGB picture, or the frames of a video, of which the middle part with the target's
            aspect ratio is used; or a mono waveform (t,) at the spec's sample rate.

    Returns:
        Pixels, uint8, or a log-mel spectrogram (1, f, m), float32.
    """
    if isinstance(raw, Image.Image):
        return _frame(spec, raw)
    if isinstance(raw, np.ndarray):
        assert isinstance(spec, SoundDiffusion)
        return log_mel(torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)), spec)
    return torch.stack([_frame(spec, frame) for frame in raw])


def _processor(spec: GeneratorSpec) -> ImageProcessor:
    """Return how a picture becomes the autoencoder's input, which is in [-1, 1]."""
    return ImageProcessor(size=(spec.shape[-2], spec.shape[-1]), mean=HALF, std=HALF)


def _frame(spec: GeneratorSpec, picture: Image.Image) -> Tensor:
    height, width = spec.shape[-2:]
    scale = min(picture.width / width, picture.height / height)
    kept = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (picture.width - kept[0]) // 2, (picture.height - kept[1]) // 2
    middle = picture.crop((left, top, left + kept[0], top + kept[1]))
    return pictures.preprocess(_processor(spec), middle)[0]


def log_mel(waveform_t: Tensor, spec: SoundDiffusion) -> Tensor:
    """Return AudioLDM's spectrogram (1, f, m): the logarithm of magnitudes on Slaney's mel scale.

    The sound is cut or zero-padded to the spec's length, and scaled to a peak of one half.
    """
    frames = spec.shape[1]
    waveform_t = F.pad(waveform_t, (0, max(0, frames * spec.hop - len(waveform_t))))
    waveform_t = waveform_t[: frames * spec.hop]
    waveform_t = waveform_t - waveform_t.mean()
    waveform_t = _PEAK * waveform_t / (waveform_t.abs().max() + 1e-8)
    spectrum_kf = torch.stft(
        waveform_t,
        _FFT,
        hop_length=spec.hop,
        window=torch.hann_window(_FFT),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters_km = mel_filter_bank(
        num_frequency_bins=_FFT // 2 + 1,
        num_mel_filters=spec.mel_bins,
        min_frequency=0.0,
        max_frequency=_HIGHEST_HERTZ,
        sampling_rate=spec.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    mel_fm = spectrum_kf.abs().T[:frames] @ torch.from_numpy(filters_km).float()
    return mel_fm.clamp(min=_FLOOR).log()[None]


def encode(vae: Any, spec: GeneratorSpec, input_values: Tensor) -> Tensor:  # noqa: ANN401
    """Return the latents (g, *latent_shape), float32, of targets: the mean of the posterior."""
    dtype = next(vae.parameters()).dtype
    values = input_values
    if not isinstance(spec, SoundDiffusion):
        values = pictures.normalise(values, _processor(spec))
    values = values.to(dtype)
    if isinstance(spec, TextToVideo):
        latents_gfcyx = _encode(vae, values.flatten(0, 1)).unflatten(0, (-1, spec.frames))
        return latents_gfcyx.transpose(1, 2)
    return _encode(vae, values)


def _encode(vae: Any, values: Tensor) -> Tensor:  # noqa: ANN401 -- diffusers' class
    latents: Tensor = vae.encode(values).latent_dist.mode().float() * vae.config.scaling_factor
    return latents


def decode(
    vae: Any,  # noqa: ANN401 -- diffusers' class
    vocoder: nn.Module | None,
    spec: GeneratorSpec,
    latents: Tensor,
) -> Tensor:
    """Return media, float32: pixels (g, 3, h, w) or (g, f, 3, h, w) in [0, 1], or sounds (g, t)."""
    if isinstance(spec, SoundDiffusion):
        assert vocoder is not None
        mel_gfm = vae.decode(1 / vae.config.scaling_factor * latents).sample.squeeze(1)
        waveform_gt: Tensor = vocoder(mel_gfm).float()
        return waveform_gt[:, : spec.shape[1] * spec.hop]  # it makes a few samples more
    if isinstance(spec, TextToVideo):
        flat = (1 / vae.config.scaling_factor * latents).transpose(1, 2).flatten(0, 1)
        pixels = vae.decode(flat).sample.unflatten(0, (-1, spec.frames))
    else:
        pixels = vae.decode(latents / vae.config.scaling_factor).sample
    return (pixels.float() * 0.5 + 0.5).clamp(0, 1)
