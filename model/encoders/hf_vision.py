"""Vision encoders of transformers: any class that AutoModel knows.

Shapes: b pictures, n tokens, d width, hw height and width in pixels, c pixels of a patch.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.encoders import pictures
from model.encoders.hf_tower import build_tower
from model.encoders.pictures import normalise
from model.positions import resize_positions
from model.spec import SpecError
from model.spec.hf_encoders import HfVision
from model.weights import Weights

SIGLIP2 = "siglip2_vision_model"
"""SigLIP 2's class for native resolutions takes patches, and how many rows and columns of them."""


class HfVisionEncoder(nn.Module):
    """Pictures to the features of one layer."""

    def __init__(self, spec: HfVision, tower: PreTrainedModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower
        self.train(False)

    def train(self, mode: bool = True) -> HfVisionEncoder:
        """Stay in evaluation mode.

        Layers dropped at random would violate the contract that all ranks call the same modules
        equally often, and batch norms keep the statistics of their own training.
        """
        super().train(False)
        return self

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        dtype = next(self.tower.parameters()).dtype
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor).to(dtype)
        layer = self.spec.feature_layer
        output = self.tower(**self._inputs(pixels_b3hw), output_hidden_states=layer is not None)
        features = output.last_hidden_state if layer is None else output.hidden_states[layer]
        if features.ndim == 4:  # the map of a convolutional network, (b, d, rows, columns)
            features = features.flatten(2).transpose(1, 2)
        return self._selected(features)

    def _inputs(self, pixels_b3hw: Tensor) -> dict[str, Tensor | None]:
        if self.spec.model_type != SIGLIP2:
            return {"pixel_values": pixels_b3hw}
        rows, columns = self.spec.grid
        patches = pixels_b3hw.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        patches_bnc = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return {
            "pixel_values": patches_bnc,
            "pixel_attention_mask": None,
            # Read as numbers, so that they need not be on the device.
            "spatial_shapes": torch.tensor([[rows, columns]] * len(patches_bnc), device="cpu"),
        }

    def _selected(self, features_bnd: Tensor) -> Tensor:
        prefix = self.spec.prefix
        if self.spec.select == "all":
            return features_bnd
        if self.spec.select == "cls":
            return features_bnd[:, :1]
        if self.spec.select == "patches":
            return features_bnd[:, prefix:]
        return torch.cat([features_bnd[:, :1], features_bnd[:, prefix:]], dim=1)


def build(spec: HfVision, *, weights: Weights, dtype: torch.dtype) -> HfVisionEncoder:
    """Return the encoder with published or random weights, for the spec's picture size.

    Raises:
        SpecError: weights that cannot be loaded, or that do not fit the spec.
    """
    tower = build_tower(
        spec.weights, spec.config, weights=weights, dtype=dtype, resize=partial(_resize, spec)
    )
    return HfVisionEncoder(spec, tower)


def _resize(spec: HfVision, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return interpolated position embeddings, (n, d) or (1, n, d)."""
    rows, columns = spec.grid
    first = prod(shape[:-1]) - rows * columns
    if rows != columns or first < 0:
        raise SpecError(f"encoder 'hf_vision': {rows} x {columns} patches, must be a square")
    return resize_positions(positions.flatten(0, -2), rows, first=first).reshape(shape)


def preprocess(spec: HfVision, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, h, w), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
