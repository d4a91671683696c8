"""Trains the digits world's toy generator of sounds: a small checkpoint of AudioLDM's classes.

Besides autoencoder and UNet it has a vocoder, which learns waveforms from spectrograms. Its text
encoder is trained by contrast, as CLAP is (Wu et al. 2022, arXiv:2211.06687). What it generates is
a single tone, see `etl.digits.tones.render_single`.

Shapes: b sounds, t samples, f frames, m mel bins, n positions of a caption, e width of its
embedding.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    PreTrainedTokenizerFast,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)
from transformers.audio_utils import mel_filter_bank, spectrogram

from etl.digits.checkpoints import diffusion
from etl.digits.generation import CAPTIONS
from etl.digits.tones import SAMPLE_RATE, SINGLE_SECONDS, render_single

log = logging.getLogger(__name__)

RATE = 16_000
"""AudioLDM's sample rate."""
MEL_BINS = 64
_HOP, _FFT = 160, 1024
FRAMES = round(SINGLE_SECONDS * RATE / _HOP)
_SAMPLES = FRAMES * _HOP
_WIDTHS = (24, 48)
_TEXT_WIDTH = 64
_TEXT_TOKENS = 6
_LATENT_CHANNELS = 4
_SOUNDS = 1500
_VOCODER_WIDTH = 64
_BATCH = 64  # in a step of the denoiser; a quarter as many sounds in one of the vocoder
_SPECTROGRAMS = 12  # in a step of the autoencoder


def train(folder: Path, *, steps: int) -> None:
    """Train the vocoder for `steps`, the rest for half as many; save all to `folder`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mels_b1fm, waves_bt, captions = _sounds(rng, _SOUNDS)
    vae: Any = diffusion.autoencoder(1, _LATENT_CHANNELS, (8, 16, 32))
    diffusion.train_autoencoder(vae, mels_b1fm, steps=steps // 2, batch=_SPECTROGRAMS)
    vocoder = SpeechT5HifiGan(_vocoder_config())
    _train_vocoder(vocoder, mels_b1fm[:, 0], waves_bt, steps=steps)
    tokenizer = diffusion.roberta_tokenizer(captions)
    text_encoder = ClapTextModelWithProjection(_text_config(tokenizer))
    diffusion.train_text_encoder(text_encoder, tokenizer, mels_b1fm, captions, _embed, _TEXT_TOKENS)
    unet: Any = _unet()
    diffusion.train_denoiser(
        unet,
        text_encoder,
        diffusion.latents_of(vae, mels_b1fm),
        diffusion.padded_ids(tokenizer, captions, _TEXT_TOKENS),
        diffusion.padded_ids(tokenizer, [""], _TEXT_TOKENS)[0],
        conditions=_conditions,
        steps=steps // 2,
        batch=_BATCH,
    )
    parts = {"vae": vae, "unet": unet, "text_encoder": text_encoder, "vocoder": vocoder}
    diffusion.save(folder, tokenizer, parts)


def log_mel(wave_t: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return AudioLDM's spectrogram (f, m): logarithm of magnitudes on Slaney's mel scale."""
    filters_km, window_t = _analysis()
    found_mf = spectrogram(
        normalised(wave_t),
        window_t,
        frame_length=_FFT,
        hop_length=_HOP,
        power=1.0,
        mel_filters=filters_km,
        mel_floor=1e-5,
        log_mel="log",
    )
    return found_mf.T[:FRAMES].astype(np.float32)


def normalised(wave_t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a waveform of the generator's length, without offset, at a peak of one half."""
    wave_t = np.pad(wave_t, (0, max(0, _SAMPLES - len(wave_t))))[:_SAMPLES]
    wave_t = wave_t - wave_t.mean()
    return 0.5 * wave_t / (np.abs(wave_t).max() + 1e-8)


@functools.cache
def _analysis() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    filters_km = mel_filter_bank(
        _FFT // 2 + 1, MEL_BINS, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney"
    )
    return filters_km, np.hanning(_FFT + 1)[:-1]


def _sounds(rng: np.random.Generator, number: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return spectrograms (b, 1, f, m), their waveforms (b, t) and captions."""
    mels, waves, captions = [], [], []
    for _ in range(number):
        digit = int(rng.integers(10))
        wave_t = resample_poly(render_single(digit, rng), RATE // SAMPLE_RATE, 1)
        mels.append(log_mel(wave_t))
        waves.append(normalised(wave_t).astype(np.float32))
        captions.append(CAPTIONS["audio"].format(digit=digit))
    return torch.from_numpy(np.stack(mels))[:, None], torch.from_numpy(np.stack(waves)), captions


def _train_vocoder(
    vocoder: SpeechT5HifiGan, mels_bfm: Tensor, waves_bt: Tensor, *, steps: int
) -> None:
    """Minimise the distance of waveforms and of their spectra, under noised spectrograms."""
    _initialise(vocoder, mels_bfm)
    parameters = list(vocoder.parameters())
    rate = 3e-3
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.8, 0.99), weight_decay=0.0)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(mels_bfm), (_BATCH // 4,))
        mel_bfm = mels_bfm[chosen]
        made_bt = vocoder(mel_bfm + 0.05 * torch.randn_like(mel_bfm))[:, :_SAMPLES]
        loss = 10 * F.mse_loss(made_bt, waves_bt[chosen])
        loss = loss + 0.1 * F.l1_loss(_spectrum(made_bt), _spectrum(waves_bt[chosen]))
        diffusion.optimizer_step(loss, parameters, optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            log.info("vocoder step %d: loss %.4f", step, loss.item())


def _initialise(vocoder: Any, mels_bfm: Tensor) -> None:  # noqa: ANN401 -- its layers are untyped
    """Keep the signal's scale from layer to layer; the published initialisation is for a GAN.

    The first layer also normalises the spectrograms. From outputs near zero, the vocoder would
    learn silence.
    """
    for module in vocoder.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
        elif isinstance(module, nn.ConvTranspose1d):
            inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
            nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
    with torch.no_grad():
        first = vocoder.conv_pre
        first.weight /= mels_bfm.std()
        first.bias.copy_(-mels_bfm.mean() * first.weight.sum((1, 2)))
        vocoder.conv_post.weight *= 0.1


def _spectrum(wave_bt: Tensor) -> Tensor:
    window = torch.hann_window(_FFT // 2)
    return torch.stft(
        wave_bt, len(window), len(window) // 4, window=window, return_complex=True
    ).abs()


def _embed(encoder: ClapTextModelWithProjection, ids_bn: Tensor) -> Tensor:
    """Return the embeddings (b, e), of length 1."""
    mask_bn = ids_bn.ne(encoder.config.pad_token_id).long()
    return F.normalize(encoder(input_ids=ids_bn, attention_mask=mask_bn).text_embeds, dim=-1)


def _conditions(encoder: ClapTextModelWithProjection, ids_bn: Tensor) -> dict[str, Tensor | None]:
    return {"encoder_hidden_states": None, "class_labels": _embed(encoder, ids_bn)}


def _text_config(tokenizer: PreTrainedTokenizerFast) -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TEXT_TOKENS + 2,  # positions begin at 2
        projection_dim=_TEXT_WIDTH,
    )


def _unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=FRAMES // 4,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=_WIDTHS,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=_TEXT_WIDTH,
        class_embeddings_concat=True,
        attention_head_dim=4,
    )
    with torch.no_grad():  # its inputs are of length 1, while those of other layers are about 8
        unet.class_embedding.weight *= _TEXT_WIDTH**0.5
    return unet


def _vocoder_config() -> SpeechT5HifiGanConfig:
    return SpeechT5HifiGanConfig(
        model_in_dim=MEL_BINS,
        sampling_rate=RATE,
        upsample_initial_channel=_VOCODER_WIDTH,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
