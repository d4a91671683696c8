"""Whisper's encoder: transformers' class (Radford et al. 2022, arXiv:2212.04356, §2.2).

Shapes: b clips, m mel bins, f frames, n tokens, d width.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Tower

from model.encoders.hf_tower import resized
from model.spec import SpecError
from model.spec.audio import Whisper
from model.weights import Weights, load_transformers


def whisper_config(spec: Whisper) -> WhisperConfig:
    """Return transformers' configuration of a spec; its decoder is never built."""
    return WhisperConfig(
        d_model=spec.width,
        encoder_ffn_dim=spec.mlp_width,
        encoder_layers=spec.layers,
        encoder_attention_heads=spec.heads,
        num_mel_bins=spec.mel_bins,
        max_source_positions=spec.tokens,
    )


class WhisperEncoder(nn.Module):
    """Log-mel spectrograms to tokens."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, mel_bmf: Tensor) -> Tensor:
        """Return tokens (b, n, d) of spectrograms (b, m, f)."""
        tokens_bnd: Tensor = self.tower(
            mel_bmf.to(next(self.tower.parameters()).dtype)
        ).last_hidden_state
        return tokens_bnd


def build(spec: Whisper, *, weights: Weights, dtype: torch.dtype) -> WhisperEncoder:
    """Return the encoder with published or random weights.

    Of weights for longer sounds, the first position embeddings are used, which are sinusoids.

    Raises:
        SpecError: weights that cannot be loaded, of other sizes, or for shorter sounds.
    """
    config = whisper_config(spec)
    if weights == "random":
        return WhisperEncoder(Tower(config).to(dtype))
    tower = load_transformers(WhisperModel, spec.weights, dtype=dtype).get_encoder()
    for name in (
        "d_model",
        "encoder_ffn_dim",
        "encoder_layers",
        "encoder_attention_heads",
        "num_mel_bins",
    ):
        expected, loaded = getattr(config, name), getattr(tower.config, name)
        if expected != loaded:
            raise SpecError(
                f"weights {spec.weights!r}: {name} is {loaded}, the preset says {expected}"
            )
    if tower.config.max_source_positions < spec.tokens:
        raise SpecError(
            f"weights {spec.weights!r}: hear {tower.config.max_source_positions / 50:g} seconds, "
            f"the preset says {spec.seconds}"
        )
    return WhisperEncoder(
        resized(tower, config, {}, spec.weights, lambda positions, shape: positions[: shape[0]])
    )


def preprocess(spec: Whisper, waveform: NDArray[np.float32]) -> Tensor:
    """Return the log-mel spectrogram (1, m, f) of a waveform, truncated or padded with silence."""
    mel: Tensor = _feature_extractor(spec)(
        np.asarray(waveform, np.float32), sampling_rate=spec.sample_rate, return_tensors="pt"
    )["input_features"]
    return mel


@functools.cache
def _feature_extractor(spec: Whisper) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=spec.mel_bins, chunk_length=spec.seconds)
