"""HuBERT: transformers' class (Hsu et al. 2021, arXiv:2106.07447).

Shapes: b clips, t samples, n tokens, d width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from model.spec.audio import Hubert
from model.weights import Weights, check_config, load_transformers

DETERMINISTIC = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
"""Layers dropped at random would violate the contract that all ranks call the same modules equally
often; masked frames would change the features."""
VARIANCE_FLOOR = 1e-7


def hubert_config(spec: Hubert) -> HubertConfig:
    """Return transformers' configuration of a spec."""
    return HubertConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        conv_dim=(spec.conv_width,) * len(spec.kernels),
        conv_kernel=spec.kernels,
        conv_stride=spec.strides,
        conv_bias=spec.norm_first,
        feat_extract_norm="layer" if spec.norm_first else "group",
        do_stable_layer_norm=spec.norm_first,
        num_conv_pos_embeddings=spec.position_kernel,
        **DETERMINISTIC,
    )


class HubertEncoder(nn.Module):
    """Waveforms to tokens."""

    def __init__(self, tower: HubertModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, waveform_bt: Tensor) -> Tensor:
        """Return tokens (b, n, d) of normalised waveforms (b, t)."""
        tokens_bnd: Tensor = self.tower(
            waveform_bt.to(next(self.tower.parameters()).dtype)
        ).last_hidden_state
        return tokens_bnd


def build(spec: Hubert, *, weights: Weights, dtype: torch.dtype) -> HubertEncoder:
    """Return the encoder with published or random weights."""
    if weights == "random":
        return HubertEncoder(HubertModel(hubert_config(spec)).to(dtype))
    tower = load_transformers(HubertModel, spec.weights, dtype=dtype, **DETERMINISTIC)
    check_config(tower, hubert_config(spec), spec.weights)
    return HubertEncoder(tower)


def preprocess(spec: Hubert, waveform: NDArray[np.float32]) -> Tensor:
    """Return the waveform (1, t), truncated or padded with silence.

    With `spec.norm_first`, it is normalised to zero mean and unit variance before padding.
    """
    samples = torch.from_numpy(np.asarray(waveform, np.float32))[: spec.shape[0]]
    if spec.norm_first and len(samples):
        deviation = (samples.var(correction=0) + VARIANCE_FLOOR).sqrt()
        samples = (samples - samples.mean()) / deviation
    return F.pad(samples, (0, spec.shape[0] - len(samples)))[None]
