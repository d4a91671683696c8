"""ChatGLM2 and ChatGLM3 backbones, with transformers' Glm (Zeng et al. 2022, *GLM-130B*)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM

from model.backbones.checkpoint import load_renamed
from model.spec.backbones import Glm
from model.weights import Weights, cast

_OUTER = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_INNER = {
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}


def glm_config(spec: Glm) -> GlmConfig:
    """Return transformers' configuration of a spec."""
    return GlmConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.width // spec.heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
        use_cache=False,
    )


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published ChatGLM2 checkpoint to transformers' names for Glm.

    Its `query_key_value` holds all queries, then the few keys, then the few values.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OUTER:
            ours[_OUTER[name]] = tensor
            continue
        stem, _, rest = name.partition("transformer.encoder.layers.")
        layer, _, inner = rest.partition(".")
        if stem:  # transformer.rotary_pos_emb.inv_freq
            continue
        prefix = f"model.layers.{layer}"
        if inner.startswith("self_attention.query_key_value."):
            kind = inner.rpartition(".")[2]
            dense = state[f"transformer.encoder.layers.{layer}.self_attention.dense.weight"]
            queries = dense.shape[1]
            keys = (len(tensor) - queries) // 2
            for letter, rows in zip("qkv", tensor.split([queries, keys, keys]), strict=True):
                ours[f"{prefix}.self_attn.{letter}_proj.{kind}"] = rows.clone()
        else:
            ours[f"{prefix}.{_INNER.get(inner, inner)}"] = tensor
    return ours


def build(spec: Glm, *, weights: Weights, dtype: torch.dtype) -> GlmForCausalLM:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = glm_config(spec)
    if weights == "random":
        return cast(GlmForCausalLM(config), dtype)
    return load_renamed(GlmForCausalLM, spec.weights, config, convert_state_dict, dtype)
