"""EVA-CLIP's vision encoder with BLIP-2's layer norm: transformers' class.

Shapes: b pictures, n tokens, d width, hw height and width in pixels.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from model.encoders import pictures
from model.encoders.pictures import normalise
from model.encoders.positions import resize_tower
from model.spec import SpecError
from model.spec.image import EvaClip
from model.weights import Weights, check_config, load_transformers

POSITIONS = "embeddings.position_embedding"


def eva_config(spec: EvaClip) -> Blip2VisionConfig:
    """Return transformers' configuration of a spec."""
    return Blip2VisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        layer_norm_eps=spec.norm_eps,
        # The default of 1e-10 would make features of random weights independent of the picture.
        initializer_range=0.02,
    )


class EvaClipEncoder(nn.Module):
    """Pictures to features after BLIP-2's layer norm, `post_layernorm` (LAVIS: `ln_vision`)."""

    def __init__(self, spec: EvaClip, tower: Blip2VisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        dtype = next(self.tower.parameters()).dtype
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        features_bnd: Tensor = self.tower(pixels_b3hw.to(dtype)).last_hidden_state
        return features_bnd if self.spec.keep_cls else features_bnd[:, 1:]


def load_tower(spec: EvaClip, *, weights: Weights, dtype: torch.dtype) -> Blip2VisionModel:
    """Return transformers' tower with published or random weights, for the spec's picture size."""
    config = eva_config(spec)
    if weights == "random":
        return Blip2VisionModel(config).to(dtype)
    tower, info = load_transformers(
        Blip2VisionModel,
        spec.weights,
        dtype=dtype,
        # The vision model of a whole BLIP-2; a checkpoint of the vision model has no such prefix.
        key_mapping={r"^vision_model\.": ""},
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise SpecError(f"weights {spec.weights!r}: {sorted(info['missing_keys'])[0]} is missing")
    check_config(tower, config, spec.weights, free=("image_size",))
    return resize_tower(tower, config, POSITIONS)


def build(spec: EvaClip, *, weights: Weights, dtype: torch.dtype) -> EvaClipEncoder:
    """Return the encoder with published or random weights."""
    return EvaClipEncoder(spec, load_tower(spec, weights=weights, dtype=dtype))


def preprocess(spec: EvaClip, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
