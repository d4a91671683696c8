"""Backbones of LLaMA's architecture (LLaMA, LLaMA-2, Vicuna), with transformers' class."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.backbones.checkpoint import load
from model.spec import Llama
from model.weights import Weights, cast


def llama_config(spec: Llama) -> LlamaConfig:
    """Return transformers' configuration of a spec."""
    return LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tied_embeddings,
        use_cache=False,
    )


def build(spec: Llama, *, weights: Weights, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return the backbone with published or random weights."""
    if weights == "random":
        return cast(LlamaForCausalLM(llama_config(spec)), dtype)
    backbone: LlamaForCausalLM = load(
        LlamaForCausalLM, spec.weights, llama_config(spec), dtype=dtype
    )
    return backbone
