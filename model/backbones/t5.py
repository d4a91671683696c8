"""Encoder-decoder backbones of T5 v1.1's architecture: Flan-T5 and UL2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from model.backbones.checkpoint import load
from model.spec.backbones import T5
from model.weights import Weights


class UntiedT5(T5ForConditionalGeneration):
    """T5 v1.1, whose output matrix is not tied to the embeddings.

    Transformers ties them whenever a checkpoint lacks the output matrix, and hence in every model
    that is built from a configuration.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }


def t5_config(spec: T5) -> T5Config:
    """Return transformers' configuration of a spec."""
    config = T5Config(
        vocab_size=spec.vocabulary,
        d_model=spec.width,
        d_kv=spec.head_width,
        d_ff=spec.mlp_width,
        num_layers=spec.layers,
        num_heads=spec.heads,
        dropout_rate=spec.dropout,
        feed_forward_proj=f"gated-{spec.activation}",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        use_cache=False,
    )
    # `gated-gelu` would mean `gelu_new` to transformers.
    config.dense_act_fn = spec.activation
    return config


def build(spec: T5, *, weights: Weights, dtype: torch.dtype) -> UntiedT5:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = t5_config(spec)
    if weights == "random":
        backbone = UntiedT5(config)
        # Initial logits then have about unit variance.
        nn.init.normal_(backbone.lm_head.weight, std=spec.width**-0.5)
        return backbone.to(dtype)
    return load(
        UntiedT5,
        spec.weights,
        config,
        dtype=dtype,
        dropout_rate=spec.dropout,
        dense_act_fn=spec.activation,
    )
