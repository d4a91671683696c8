"""Make tiny random encoders and language models, saved as their publishers save theirs.

    python docs/examples/make_tiny_parts.py runs/parts

They stand in for real ones on docs/bring-your-own-parts.md, so that its session runs anywhere, in
seconds and without a hub. Their answers mean nothing.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from model import byte_tokenizers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT = {
    **SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
VISION = {**SIZES, "num_attention_heads": 2}
AUDIO = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def language_models() -> Mapping[str, PreTrainedModel]:
    """Return a small model of each of three families: grouped queries, tied weights, windows."""
    windows = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    return {
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=16)),
        "smollm2": LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=True)),
        "gemma3": Gemma3ForCausalLM(
            Gemma3TextConfig(**TEXT, head_dim=16, query_pre_attn_scalar=16, **windows)
        ),
    }


def encoders() -> Mapping[str, tuple[PreTrainedModel, Any]]:
    """Return small encoders, each with the processor of its inputs."""
    sides = {"height": 32, "width": 32}
    return {
        "siglip2": (
            Siglip2VisionModel(Siglip2VisionConfig(**VISION, patch_size=8, num_patches=16)),
            Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        ),
        "dinov2": (
            Dinov2Model(Dinov2Config(**VISION, image_size=32, patch_size=8)),
            BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=sides),
        ),
        "whisper": (WhisperModel(WhisperConfig(**AUDIO)), WhisperFeatureExtractor()),
    }


def main() -> None:
    """Write one folder for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write one folder for each part")
    folder: Path = parser.parse_args().folder
    torch.manual_seed(0)
    for name, model in language_models().items():
        model.save_pretrained(folder / name)
        tokenizer = byte_tokenizers.plain()
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(folder / name)
    for name, (model, processor) in encoders().items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    sys.stdout.write(f"wrote {names} to {folder}\n")


if __name__ == "__main__":
    main()
