"""A tiny CLIP model with random weights, saved as transformers saves one."""

import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def save_tiny_clip(folder: Path) -> Path:
    """Write the model, its tokenizer of letters and its image processor; returns the folder."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*string.ascii_lowercase, *string.digits, "."]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    start, end = (vocabulary[mark] for mark in marks)
    config = CLIPConfig(
        projection_dim=8,
        text_config={
            **tower,
            "num_hidden_layers": 1,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 24,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**tower, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():  # initial weights are so small that all images look the same
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder
