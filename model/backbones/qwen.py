"""Qwen backbones of the first version, with transformers' Qwen2 (Bai et al. 2023).

Qwen and Qwen2 are equivalent up to the trained number of positions, where the first version's
`use_logn_attn` and `use_dynamic_ntk` have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.backbones.checkpoint import load_renamed
from model.spec.backbones import Qwen
from model.weights import Weights, cast

_OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_INNER = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}


def qwen_config(spec: Qwen) -> Qwen2Config:
    """Return transformers' configuration of a spec."""
    return Qwen2Config(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
        use_cache=False,
    )


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published Qwen checkpoint to transformers' names for Qwen2.

    Qwen's gate is `w2` and its up projection `w1`; `c_attn` holds queries, keys and values.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OUTER:
            ours[_OUTER[name]] = tensor
            continue
        stem, _, rest = name.partition("transformer.h.")
        layer, _, inner = rest.partition(".")
        if stem or inner == "attn.rotary_emb.inv_freq":
            continue
        prefix = f"model.layers.{layer}"
        if inner in ("attn.c_attn.weight", "attn.c_attn.bias"):
            kind = inner.rpartition(".")[2]
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{prefix}.self_attn.{letter}_proj.{kind}"] = rows.clone()
        else:
            ours[f"{prefix}.{_INNER.get(inner, inner)}"] = tensor
    return ours


def build(spec: Qwen, *, weights: Weights, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = qwen_config(spec)
    if weights == "random":
        return cast(Qwen2ForCausalLM(config), dtype)
    return load_renamed(Qwen2ForCausalLM, spec.weights, config, convert_state_dict, dtype)
