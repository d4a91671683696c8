"""Tiny random checkpoints of language models, saved as their publishers save them."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5Config,
    UMT5Config,
)
from transformers.models.auto.modeling_auto import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

VOCABULARY = 384
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 4}
T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], **WINDOW}

CAUSAL = {
    "llama-3": LlamaConfig(**SIZES, **GQA, rope_parameters=LLAMA_3_ROPE),
    "smollm2": LlamaConfig(**SIZES, **GQA, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SIZES, **GQA, no_rope_layers=[1, 0]),
    "qwen2.5": Qwen2Config(
        **SIZES, **GQA, tie_word_embeddings=True, use_sliding_window=True, **WINDOWED
    ),
    "qwen3": Qwen3Config(**SIZES, **GQA, head_dim=16),
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    "gemma-2": Gemma2Config(
        **SIZES,
        **GQA,
        head_dim=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        **WINDOWED,
    ),
    "gemma-3": Gemma3TextConfig(**SIZES, **GQA, head_dim=16, query_pre_attn_scalar=16, **WINDOWED),
    "mistral": MistralConfig(**SIZES, **GQA, **WINDOW),
    "phi-2": PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "phi-3": Phi3Config(**SIZES, **GQA, **WINDOW),
    "olmo": OlmoConfig(**SIZES, clip_qkv=8.0),
    "olmo-2": Olmo2Config(**SIZES, **GQA),
    "olmo-3": Olmo3Config(**SIZES, **GQA, **WINDOWED),
    "granite": GraniteConfig(**SIZES, **GQA, logits_scaling=8.0, embedding_multiplier=12.0),
    "cohere": CohereConfig(**SIZES, **GQA, logit_scale=0.0625),
}
SEQ2SEQ = {
    "t5": T5Config(**T5_SIZES),
    "t5-v1.1": T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": MT5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": UMT5Config(**T5_SIZES, feed_forward_proj="gated-gelu"),
}


def save_backbone(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny model of a family with weights so large that each of its functions matters."""
    config = CAUSAL[name] if name in CAUSAL else SEQ2SEQ[name]
    auto = AutoModelForCausalLM if name in CAUSAL else AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return folder
