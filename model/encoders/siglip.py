"""SigLIP's vision transformer: transformers' class, without its pooling head.

Zhai et al. 2023, *Sigmoid Loss for Language Image Pre-Training* (arXiv:2303.15343).

Shapes: b pictures, n tokens, d width, hw height and width in pixels.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from model.encoders import pictures
from model.encoders.pictures import normalise
from model.spec.siglip import Siglip
from model.weights import Weights, check_config, load_transformers


def siglip_config(spec: Siglip) -> SiglipVisionConfig:
    """Return transformers' configuration of a spec."""
    return SiglipVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        layer_norm_eps=spec.norm_eps,
        vision_use_head=False,
    )


class SiglipEncoder(nn.Module):
    """Pictures to the features of their patches."""

    def __init__(self, spec: Siglip, tower: SiglipVisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        dtype = next(self.tower.parameters()).dtype
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        features_bnd: Tensor = self.tower(pixels_b3hw.to(dtype)).last_hidden_state
        return features_bnd


def build(spec: Siglip, *, weights: Weights, dtype: torch.dtype) -> SiglipEncoder:
    """Return the encoder with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or whose sizes differ from the spec's.
    """
    config = siglip_config(spec)
    if weights == "random":
        return SiglipEncoder(spec, SiglipVisionModel(config).to(dtype))
    tower = load_transformers(SiglipVisionModel, spec.weights, dtype=dtype, vision_use_head=False)
    check_config(tower, config, spec.weights)
    return SiglipEncoder(spec, tower)


def preprocess(spec: Siglip, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
