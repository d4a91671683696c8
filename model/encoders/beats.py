"""BEATs, a transformer over patches of a spectrogram (Chen et al. 2022, arXiv:2212.09058, §3.1).

It differs from a plain vision transformer in its positions, which are encoded by a convolution over
the tokens and by a gated relative bias (WavLM, Chen et al. 2021, arXiv:2110.13900, §III-B), and in
its residuals, which are scaled and normalised after the sum (DeepNorm, Wang et al. 2022,
arXiv:2203.00555).

Shapes: b clips, f frames, m mel bins, n tokens (time first, then frequency), d width, h heads,
e width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.encoders.fbank import fbank, fit_frames
from model.spec.audio import Beats
from model.weights import Weights, load_published

BUCKETS = 320
"""Buckets of the relative distance, half of them for each direction."""
FARTHEST = 800
"""Distance, in tokens, from which on all keys share one bucket."""
POSITION_GROUPS = 16
GATE_WIDTH = 8
MEAN, DEVIATION = 15.41663, 6.55582
"""Mean and deviation of the features that BEATs was trained on; it divides by twice the latter."""
INTEGER_SCALE = 2**15
"""Features are computed from samples with the scale of 16-bit integers."""
LEFT_OUT = ("predictor.", "mask_emb")
"""Tensors of a BEATs checkpoint that only its classifier or its pre-training uses."""


class GatedAttention(nn.Module):
    """Self-attention with a gated relative bias (WavLM, eqs. 4 to 8)."""

    def __init__(self, width: int, heads: int, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = scaled_linear(width, width, 1.0), scaled_linear(width, width, 1.0)
        self.value, self.out = scaled_linear(width, width, gain), scaled_linear(width, width, gain)
        self.gate = scaled_linear(width // heads, GATE_WIDTH, 1.0)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, tokens_bnd: Tensor, bias_hnn: Tensor) -> Tensor:
        """Return mixed tokens (b, n, d)."""
        query_bhne, key_bhne, value_bhne = (
            layer(tokens_bnd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        gates = self.gate(query_bhne).unflatten(-1, (2, -1)).sum(-1).sigmoid()
        update_bhn1, reset_bhn1 = gates.chunk(2, dim=-1)
        scale_bhn1 = update_bhn1 * (reset_bhn1 * self.gate_scale - 1) + 2
        mixed_bhne = F.scaled_dot_product_attention(
            query_bhne, key_bhne, value_bhne, attn_mask=scale_bhn1 * bias_hnn
        )
        mixed_bnd: Tensor = self.out(mixed_bhne.transpose(1, 2).flatten(2))
        return mixed_bnd


class DeepNormLayer(nn.Module):
    """A transformer layer that normalises after the sum, x ← LN(α·x + f(x)) (DeepNorm, eq. 2)."""

    def __init__(self, spec: Beats) -> None:
        super().__init__()
        self.scale = (2 * spec.layers) ** 0.25
        gain = (8 * spec.layers) ** -0.25
        self.attention = GatedAttention(spec.width, spec.heads, gain)
        self.norm1 = nn.LayerNorm(spec.width)
        self.mlp = nn.Sequential(
            scaled_linear(spec.width, spec.mlp_width, gain),
            nn.GELU(),
            scaled_linear(spec.mlp_width, spec.width, gain),
        )
        self.norm2 = nn.LayerNorm(spec.width)

    def forward(self, tokens_bnd: Tensor, bias_hnn: Tensor) -> Tensor:
        """Return tokens (b, n, d)."""
        mixed_bnd = self.attention(tokens_bnd, bias_hnn)
        tokens_bnd = self.norm1(self.scale * tokens_bnd + mixed_bnd)
        out_bnd: Tensor = self.norm2(self.scale * tokens_bnd + self.mlp(tokens_bnd))
        return out_bnd


class BeatsEncoder(nn.Module):
    """Clips of log-mel features to tokens."""

    def __init__(self, spec: Beats) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, spec.patch_width, spec.patch, spec.patch, bias=False)
        nn.init.xavier_normal_(self.patches.weight)
        self.patch_norm = nn.LayerNorm(spec.patch_width)
        self.project = scaled_linear(spec.patch_width, spec.width, 1.0)
        self.positions = nn.Conv1d(
            spec.width,
            spec.width,
            spec.position_kernel,
            padding=spec.position_kernel // 2,
            groups=POSITION_GROUPS,
        )
        nn.init.normal_(self.positions.weight, std=2 / math.sqrt(spec.position_kernel * spec.width))
        self.norm = nn.LayerNorm(spec.width)
        self.distances = nn.Embedding(BUCKETS, spec.heads)
        nn.init.xavier_normal_(self.distances.weight)
        self.layers = nn.ModuleList(DeepNormLayer(spec) for _ in range(spec.layers))

    def forward(self, features_bfm: Tensor) -> Tensor:
        """Return tokens (b, n, d) of normalised features (b, f, m)."""
        features_bfm = features_bfm.to(next(self.parameters()).dtype)
        patches_bnd = self.patches(features_bfm[:, None]).flatten(2).transpose(1, 2)
        tokens_bnd = self.project(self.patch_norm(patches_bnd))
        # An even kernel returns one token too many.
        positions = self.positions(tokens_bnd.transpose(1, 2))[..., : tokens_bnd.shape[1]]
        tokens_bnd = self.norm(tokens_bnd + F.gelu(positions).transpose(1, 2))
        buckets_nn = distance_buckets(tokens_bnd.shape[1], tokens_bnd.device)
        bias_hnn = self.distances(buckets_nn).permute(2, 0, 1)
        for layer in self.layers:
            tokens_bnd = layer(tokens_bnd, bias_hnn)
        return tokens_bnd


def distance_buckets(tokens: int, device: torch.device) -> Tensor:
    """Return the bucket (n, n) of each key's distance from each query.

    The first half is for keys before the query. Small distances have one bucket each, those up to
    `FARTHEST` share logarithmic ones (T5, Raffel et al. 2020, §2.1).
    """
    index_n = torch.arange(tokens, device=device)
    distance_nn = index_n - index_n[:, None]
    half, near = BUCKETS // 2, BUCKETS // 4
    far_nn = distance_nn.abs()
    growth = (far_nn.clamp_min(1) / near).log() / math.log(FARTHEST / near)
    shared_nn = (near + (growth * (half - near)).long()).clamp_max(half - 1)
    return torch.where(far_nn < near, far_nn, shared_nn) + half * (distance_nn > 0)


def scaled_linear(width_in: int, width_out: int, gain: float) -> nn.Linear:
    """Return a linear layer with Glorot's normal initialisation, as in DeepNorm (fig. 2)."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_normal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


def build(spec: Beats, *, weights: Weights, dtype: torch.dtype) -> BeatsEncoder:
    """Return the encoder with published or random weights."""
    encoder = BeatsEncoder(spec)
    if weights == "pretrained":
        load_published(encoder, spec.weights, convert_state_dict)
    return encoder.to(dtype)


def convert_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of a BEATs checkpoint to ours, except for `LEFT_OUT`.

    Args:
        checkpoint: the file's content, with tensors at the top level or under `model`. It stores
            the position convolution as direction and length (weight normalisation), and repeats the
            shared distance bias in every layer.
    """
    names = {
        "post_extract_proj.": "project.",
        "patch_embedding.": "patches.",
        "encoder.layer_norm.": "norm.",
        "encoder.pos_conv.0.": "positions.",
        "encoder.layers.0.self_attn.relative_attention_bias.": "distances.",
        "encoder.layers.": "layers.",
        "self_attn.q_proj.": "attention.query.",
        "self_attn.k_proj.": "attention.key.",
        "self_attn.v_proj.": "attention.value.",
        "self_attn.out_proj.": "attention.out.",
        "self_attn.grep_linear.": "attention.gate.",
        "self_attn.grep_a": "attention.gate_scale",
        "self_attn_layer_norm.": "norm1.",
        "final_layer_norm.": "norm2.",
        "fc1.": "mlp.0.",
        "fc2.": "mlp.2.",
    }
    ours: dict[str, Tensor] = {}
    for name, tensor in checkpoint.get("model", checkpoint).items():
        if name.startswith(LEFT_OUT):
            continue
        our = name.replace("layer_norm.", "patch_norm.") if name.startswith("layer_norm.") else name
        for theirs, replacement in names.items():
            our = our.replace(theirs, replacement)
        if "relative_attention_bias" not in our:
            ours[our] = tensor
    direction, length = ours.pop("positions.weight_v"), ours.pop("positions.weight_g")
    ours["positions.weight"] = direction * (length / torch.norm_except_dim(direction, 2, 2))
    return ours


def preprocess(spec: Beats, waveform: NDArray[np.float32]) -> Tensor:
    """Return the normalised log-mel clips (clips, frames, mel bins) of a mono waveform.

    Clips are consecutive; longer waveforms are truncated, shorter ones padded with zeros, the mean
    of the normalised features, as in X-InstructBLIP.
    """
    samples = torch.from_numpy(np.asarray(waveform, np.float32)) * INTEGER_SCALE
    features_fm = fbank(samples, spec.sample_rate, spec.mel_bins, "povey")
    features_fm = (features_fm - MEAN) / (2 * DEVIATION)
    fitted_fm = fit_frames(features_fm, spec.clips * spec.frames)
    return fitted_fm.unflatten(0, (spec.clips, spec.frames))
