"""The speech encoder and the C-Former of X-LLM (Chen et al. 2023, arXiv:2305.04160, §3.1).

Mel frames → a convolution and a Conformer that halve their number three times (Han et al. 2023,
arXiv:2301.13003; pooling: Dong & Xu 2020) → integrate-and-fire → BERT's layers. The Conformer's
layers and BERT are transformers' classes.

Shapes: b clips, f mel frames, m mel bins, t frames, k fired vectors, c speech width, d width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoderLayer,
    Wav2Vec2ConformerRelPositionalEmbedding,
)

from model.encoders.blocks import linear
from model.encoders.cif import FrameWeights, integrate_and_fire
from model.encoders.fbank import fbank, fit_frames
from model.spec.audio import CFormer
from model.weights import Weights, check_config, load_published, load_transformers

FIRST_KERNEL, FIRST_STRIDE = 3, 2
POOL = 2
INTEGER_SCALE = 2**15
"""Features are computed from samples with the scale of 16-bit integers."""
DEVIATION_FLOOR = 1e-5


def conformer_config(spec: CFormer) -> Wav2Vec2ConformerConfig:
    """Return transformers' configuration of one Conformer layer."""
    return Wav2Vec2ConformerConfig(
        hidden_size=spec.speech_width,
        intermediate_size=spec.speech_mlp_width,
        num_attention_heads=spec.speech_heads,
        hidden_act="swish",
        conv_depthwise_kernel_size=spec.conv_kernel,
        position_embeddings_type="relative",
        max_source_positions=spec.shape[0],
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        conformer_conv_dropout=0.0,
        attn_implementation="eager",
    )


def bert_config(spec: CFormer) -> BertConfig:
    """Return transformers' configuration of the C-Former's transformer."""
    return BertConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


class SpeechEncoder(nn.Module):
    """Mel frames to hidden states, one per eight frames, and their weights."""

    def __init__(self, spec: CFormer) -> None:
        super().__init__()
        self.pool_after = spec.pool_after
        self.convolution = nn.Conv2d(1, spec.conv_channels, FIRST_KERNEL, FIRST_STRIDE)
        nn.init.xavier_normal_(self.convolution.weight)
        bins = (spec.mel_bins - FIRST_KERNEL) // FIRST_STRIDE + 1
        self.project = linear(spec.conv_channels * bins, spec.speech_width)
        config = conformer_config(spec)
        self.positions = Wav2Vec2ConformerRelPositionalEmbedding(config)
        self.layers = nn.ModuleList(
            Wav2Vec2ConformerEncoderLayer(config) for _ in range(spec.speech_layers)
        )
        self.weights = FrameWeights(spec.speech_width)
        self.train(False)

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Stay in evaluation mode: its batch norms keep the statistics of its own training."""
        super().train(False)
        return self

    def forward(self, mel_bfm: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (b, t, c) and weights (b, t), which are 0 for padded frames."""
        dtype = next(self.parameters()).dtype
        maps = self.convolution(mel_bfm.to(dtype)[:, None]).relu()
        states_btc = self.project(maps.transpose(1, 2).flatten(2))
        mask_bt = (mel_bfm != 0).any(-1)[:, ::FIRST_STRIDE][:, : states_btc.shape[1]]
        for number, layer in enumerate(self.layers, start=1):
            positions = self.positions(states_btc)
            states_btc = layer(states_btc, relative_position_embeddings=positions)
            if number in self.pool_after:
                states_btc = F.max_pool1d(states_btc.transpose(1, 2), POOL).transpose(1, 2)
                mask_bt = mask_bt[:, ::POOL][:, : states_btc.shape[1]]
        return states_btc, self.weights(states_btc) * mask_bt


class CFormerEncoder(nn.Module):
    """Mel frames to a fixed number of tokens."""

    def __init__(self, spec: CFormer, transformer: BertModel) -> None:
        super().__init__()
        self.tokens = spec.tokens
        self.speech = SpeechEncoder(spec)
        self.project = linear(spec.speech_width, spec.width)
        # It is called with embeddings, never with ids.
        transformer.embeddings.word_embeddings = None
        self.transformer = transformer

    def forward(self, mel_bfm: Tensor) -> Tensor:
        """Return tokens (b, k, d) of normalised mel frames (b, f, m)."""
        states_btc, weights_bt = self.speech(mel_bfm)
        fired_bkc = integrate_and_fire(states_btc, weights_bt, self.tokens)
        tokens_bkd: Tensor = self.transformer(
            inputs_embeds=self.project(fired_bkc).relu()
        ).last_hidden_state
        return tokens_bkd


def build(spec: CFormer, *, weights: Weights, dtype: torch.dtype) -> CFormerEncoder:
    """Return the encoder with stored or random weights."""
    config = bert_config(spec)
    if weights == "random":
        return CFormerEncoder(spec, BertModel(config, add_pooling_layer=False)).to(dtype)
    transformer = load_transformers(
        BertModel,
        spec.transformer,
        dtype=dtype,
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    check_config(transformer, config, spec.transformer)
    encoder = CFormerEncoder(spec, transformer)
    load_published(encoder.speech, spec.weights, lambda state: state)
    return encoder.to(dtype)


def preprocess(spec: CFormer, waveform: NDArray[np.float32]) -> Tensor:
    """Return normalised log-mel frames (1, f, m) of a mono waveform, truncated or zero-padded.

    Each mel bin has zero mean and unit variance over the sound, before padding.
    """
    samples = torch.from_numpy(np.asarray(waveform, np.float32)) * INTEGER_SCALE
    features_fm = fbank(samples, spec.sample_rate, spec.mel_bins, "povey")[: spec.shape[0]]
    deviation_m = features_fm.std(dim=0, correction=0).clamp_min(DEVIATION_FLOOR)
    features_fm = (features_fm - features_fm.mean(dim=0)) / deviation_m
    return fit_frames(features_fm, spec.shape[0])[None]
