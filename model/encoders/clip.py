"""CLIP's vision encoder: transformers' class, up to the layer that the spec names.

Shapes: b pictures, n tokens, d width, hw height and width in pixels.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.encoders import pictures
from model.encoders.pictures import normalise
from model.encoders.positions import resize_tower
from model.spec.image import ClipVision
from model.weights import Weights, check_config, load_transformers

POSITIONS = "embeddings.position_embedding.weight"


def clip_config(spec: ClipVision) -> CLIPVisionConfig:
    """Return transformers' configuration of a spec."""
    return CLIPVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_act=spec.hidden_act,
        layer_norm_eps=spec.norm_eps,
        # CLIP's own text-image space, unused here; the head is not part of CLIPVisionModel.
        projection_dim=spec.width,
    )


class ClipEncoder(nn.Module):
    """Pictures to patch features, F_X = ME_X(I_X) (survey eq. 1)."""

    def __init__(self, spec: ClipVision, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        # Not by name: under ZeRO-3, accessing a weight outside its module gathers it, a collective
        # that the other ranks would not take part in.
        dtype = next(self.tower.parameters()).dtype
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        features_bnd: Tensor = self.tower.embeddings(pixels_b3hw.to(dtype))
        if not self.spec.attend_cls:
            features_bnd = features_bnd[:, 1:]
        features_bnd = self.tower.pre_layrnorm(features_bnd)
        # Later layers are not needed.
        for layer in self.tower.encoder.layers[
            : range(self.spec.layers + 1)[self.spec.feature_layer]
        ]:
            features_bnd = layer(features_bnd, attention_mask=None)
        return features_bnd[:, 1:] if self.drops_cls else features_bnd

    @property
    def drops_cls(self) -> bool:
        """Whether there is a class token before the patches that is not returned."""
        return self.spec.attend_cls and not self.spec.keep_cls


def load_tower(spec: ClipVision, *, weights: Weights, dtype: torch.dtype) -> CLIPVisionModel:
    """Return transformers' tower with published or random weights, for the spec's picture size."""
    config = clip_config(spec)
    if weights == "random":
        return CLIPVisionModel(config).to(dtype)
    tower = load_transformers(CLIPVisionModel, spec.weights, dtype=dtype)
    check_config(tower, config, spec.weights, free=("image_size",))
    return resize_tower(tower, config, POSITIONS)


def build(spec: ClipVision, *, weights: Weights, dtype: torch.dtype) -> ClipEncoder:
    """Return the encoder with published or random weights."""
    return ClipEncoder(spec, load_tower(spec, weights=weights, dtype=dtype))


def preprocess(spec: ClipVision, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
