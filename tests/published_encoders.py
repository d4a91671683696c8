"""Tiny random checkpoints of encoders of pictures and of sound, saved as their publishers do."""

import json

import torch
import transformers
from transformers import AutoConfig, AutoModel

VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = VIT | {"vocab_size": 50, "max_position_embeddings": 8}
STAGES = {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]}
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}


def towers(**vision):
    """Return the configurations of a model with an image and a text tower."""
    return {"vision_config": VIT | vision, "text_config": TEXT}


VISION = {
    "clip": (towers(), "CLIP", CROP),
    "siglip": (towers(), "Siglip", SQUARE),
    "siglip_vision_model": (VIT, "Siglip", SQUARE),
    "siglip2": (towers(num_patches=16), "Siglip2", {"patch_size": 8, "max_num_patches": 16}),
    "dinov2": (VIT | {"image_size": 56}, "Bit", CROP),
    "dinov2_with_registers": (VIT | {"image_size": 56}, "Bit", CROP),
    "dinov3_vit": (VIT | {"num_register_tokens": 4}, "DINOv3ViT", SQUARE),
    "vit": (VIT, "ViT", SQUARE),
    "deit": (VIT, "DeiT", {"size": 36, "crop_size": 32}),
    "beit": (VIT, "Beit", SQUARE),
    "swin": (
        {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "window_size": 2}
        | {"image_size": 32, "patch_size": 4},
        "ViT",
        SQUARE,
    ),
    "convnextv2": (STAGES, "ConvNext", {"size": {"shortest_edge": 64}}),
    "aimv2_vision_model": (VIT, "CLIP", CROP),
}
"""Family → configuration, image processor, its values. DINOv2's positions are of another size."""

WAV2VEC = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 10},
    **{"num_attention_heads": 2, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16},
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    **{"d_model": 32, "encoder_ffn_dim": 48, "encoder_layers": 2, "encoder_attention_heads": 2},
    **{"decoder_ffn_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 2},
    **{"num_mel_bins": 16, "max_source_positions": 150, "vocab_size": 100, "pad_token_id": 0},
    "decoder_start_token_id": 1,
}
AUDIO = {
    "whisper": (WHISPER, "Whisper", {"feature_size": 16, "chunk_length": 3}),
    "wav2vec2": (WAV2VEC, "Wav2Vec2", {"do_normalize": False}),
    "hubert": (
        WAV2VEC | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        "Wav2Vec2",
        {"return_attention_mask": True},
    ),
    "wavlm": (WAV2VEC, "Wav2Vec2", {}),
    "audio-spectrogram-transformer": (
        VIT | {"patch_size": 16, "max_length": 300},
        "AST",
        {"max_length": 300},
    ),
}
"""Family → configuration, feature extractor, its values."""


def save_vision(folder, family, **options):
    """Save a vision encoder with its image processor; return transformers' model."""
    config, processor, values = VISION[family]
    model = saved(folder, family, config, **options)
    name = f"{processor}ImageProcessor"
    cls = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    if processor == "DINOv3ViT":  # needs torchvision
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": name, **values})
        )
    else:
        cls(**values).save_pretrained(folder)
    return model


def save_audio(folder, family, **options):
    """Save an encoder of sound with its feature extractor; return transformers' model."""
    config, extractor, values = AUDIO[family]
    model = saved(folder, family, config, **options)
    getattr(transformers, f"{extractor}FeatureExtractor")(**values).save_pretrained(folder)
    return model


def saved(folder, family, fields, **options):
    """Save a model with all weights random: initial zeros and ones could hide errors."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # Whisper's sinusoids stay
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder, **options)
    return model
