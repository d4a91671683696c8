"""OPT backbones, with transformers' class (Zhang et al. 2022, *OPT*)."""

from __future__ import annotations

import torch
from transformers import OPTConfig, OPTForCausalLM

from model.backbones.checkpoint import load
from model.spec.backbones import Opt
from model.weights import Weights


def opt_config(spec: Opt) -> OPTConfig:
    """Return transformers' configuration of a spec."""
    return OPTConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        ffn_dim=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=spec.max_positions,
        dropout=spec.dropout,
        use_cache=False,
    )


def build(spec: Opt, *, weights: Weights, dtype: torch.dtype) -> OPTForCausalLM:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = opt_config(spec)
    if weights == "random":
        return OPTForCausalLM(config).to(dtype)
    return load(OPTForCausalLM, spec.weights, config, dtype=dtype, dropout=spec.dropout)
