"""Transformers' multimodal models in tiny sizes, with random weights that hide no errors."""

import torch
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

VOCABULARY = 384
IMAGE_ID = 383
VIDEO_ID = 382
"""Placeholder ids at the positions of pictures and videos, which occur in no text."""
TOKENS = {"image": IMAGE_ID, "video": VIDEO_ID}

_SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
_VISION = _SMALL | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
_CLIP = _VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 3}
_QFORMER = _SMALL | {"num_hidden_layers": 3, "vocab_size": 300, "encoder_hidden_size": 32}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA_3 = LLAMA | {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
QWEN_2 = LLAMA | {"model_type": "qwen2"}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 8}
OPT = {
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "word_embed_proj_dim": 40,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
T5 = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": 40,
    "d_kv": 12,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}


def llava(text=LLAMA, **fields):
    return _randomised(
        LlavaForConditionalGeneration,
        LlavaConfig(vision_config=_CLIP, text_config=text, image_token_index=IMAGE_ID, **fields),
    )


def video_llava(frames=3):
    config = VideoLlavaConfig(
        vision_config=_CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        video_seq_length=17 * frames,
    )
    return _randomised(VideoLlavaForConditionalGeneration, config)


def blip_2(text):
    return _randomised(Blip2ForConditionalGeneration, _blip(Blip2Config, text))


def instructblip(text):
    return _randomised(InstructBlipForConditionalGeneration, _blip(InstructBlipConfig, text))


def instructblip_video(text):
    return _randomised(
        InstructBlipVideoForConditionalGeneration, _blip(InstructBlipVideoConfig, text)
    )


def _blip(cls, text):
    videos = cls is InstructBlipVideoConfig
    token = {"video_token_index": VIDEO_ID} if videos else {"image_token_index": IMAGE_ID}
    return cls(
        vision_config=_VISION,
        qformer_config=_QFORMER,
        text_config=text,
        num_query_tokens=5,
        **token,
    )


def _randomised(cls, config):
    """Return a model with all weights random: initial zeros and ones could hide errors."""
    torch.manual_seed(0)
    model = cls(config).eval()
    if config.text_config.model_type == "t5":  # as Flan-T5 has it
        model.language_model.lm_head.weight = nn.Parameter(torch.empty(VOCABULARY, 40))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=float(weight.ndim < 2), std=0.15)
    return model
