"""The original vision transformer: transformers' class, up to its last norm.

Shapes: b pictures, n tokens, d width, hw height and width in pixels.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from model.encoders import pictures
from model.encoders.pictures import normalise
from model.encoders.positions import resize_tower
from model.spec.vit import Vit
from model.weights import Weights, check_config, load_transformers

POSITIONS = "embeddings.position_embeddings"


def vit_config(spec: Vit) -> ViTConfig:
    """Return transformers' configuration of a spec."""
    return ViTConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
    )


class VitEncoder(nn.Module):
    """Pictures to the features of their patches."""

    def __init__(self, spec: Vit, tower: ViTModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        dtype = next(self.tower.parameters()).dtype
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        features_bnd: Tensor = self.tower(pixels_b3hw.to(dtype)).last_hidden_state
        return features_bnd if self.spec.keep_cls else features_bnd[:, 1:]


def build(spec: Vit, *, weights: Weights, dtype: torch.dtype) -> VitEncoder:
    """Return the encoder with published or random weights."""
    config = vit_config(spec)
    if weights == "random":
        return VitEncoder(spec, ViTModel(config, add_pooling_layer=False).to(dtype))
    tower = load_transformers(ViTModel, spec.weights, dtype=dtype, add_pooling_layer=False)
    check_config(tower, config, spec.weights, free=("image_size",))
    return VitEncoder(spec, resize_tower(tower, config, POSITIONS, add_pooling_layer=False))


def preprocess(spec: Vit, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
