"""A stand-in for PaLM: transformers' Cohere has the same layers (Chowdhery et al. 2022, §2)."""

from __future__ import annotations

import torch
from transformers import CohereConfig, CohereForCausalLM

from model.backbones.checkpoint import load
from model.spec.backbones import Palm
from model.weights import Weights, cast


def palm_config(spec: Palm) -> CohereConfig:
    """Return transformers' configuration of a spec."""
    return CohereConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=1,
        head_dim=spec.head_width,
        max_position_embeddings=spec.max_positions,
        logit_scale=1.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )


def build(spec: Palm, *, weights: Weights, dtype: torch.dtype) -> CohereForCausalLM:
    """Return the backbone with random weights, or those of a Cohere checkpoint of its sizes.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = palm_config(spec)
    if weights == "random":
        return cast(CohereForCausalLM(config), dtype)
    return load(CohereForCausalLM, spec.weights, config, dtype=dtype)
