"""DocPedia's encoder: a Swin transformer on a picture's DCT coefficients.

Feng et al. 2023, *DocPedia* (arXiv:2311.11810). The Swin transformer (Liu et al. 2021,
arXiv:2103.14030) is transformers' class; its patch embedding, one patch per block, is the adapter.

Shapes: b pictures, n tokens, d width, uv frequencies, c coefficients of a block, gg rows and
columns of blocks, pp pixels of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from model.spec import SpecError
from model.spec.high_resolution import DCT_SIDE, DocPedia
from model.weights import Weights, load_transformers

ADAPTER = "embeddings.patch_embeddings.projection.weight"


def swin_config(spec: DocPedia) -> SwinConfig:
    """Return transformers' configuration: the coefficients of a block are its channels."""
    coefficients, side, _ = spec.shape
    return SwinConfig(
        image_size=side,
        patch_size=1,
        num_channels=coefficients,
        embed_dim=spec.embed_width,
        depths=spec.depths,
        num_heads=spec.heads,
        window_size=spec.window,
        drop_path_rate=0.0,
    )


class DocPediaEncoder(nn.Module):
    """DCT coefficients to features."""

    def __init__(self, tower: SwinModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, coefficients_bcgg: Tensor) -> Tensor:
        """Return features (b, n, d) of coefficients (b, c, g, g)."""
        dtype = next(self.tower.parameters()).dtype
        features_bnd: Tensor = self.tower(coefficients_bcgg.to(dtype)).last_hidden_state
        return features_bnd


def build(spec: DocPedia, *, weights: Weights, dtype: torch.dtype) -> DocPediaEncoder:
    """Return the encoder with random weights, or published ones except for the adapter."""
    config = swin_config(spec)
    if weights == "random":
        return DocPediaEncoder(SwinModel(config, add_pooling_layer=False).to(dtype))
    tower, info = load_transformers(
        SwinModel,
        spec.weights,
        config=config,
        dtype=dtype,
        add_pooling_layer=False,
        # A checkpoint for pixels has another first layer; other differences are errors, see below.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    wrong = {name for name, *_ in info["mismatched_keys"]} - {ADAPTER} | set(info["missing_keys"])
    if wrong:
        raise SpecError(f"weights {spec.weights!r}: {sorted(wrong)[0]} is missing or does not fit")
    return DocPediaEncoder(tower)


def preprocess(spec: DocPedia, picture: Image.Image) -> Tensor:
    """Return the coefficients (1, 192, g, g) of an RGB picture, resized bicubically.

    Channel 64 k + 8 u + v has vertical frequency u and horizontal frequency v of Y, Cb or Cr
    (k = 0, 1, 2).
    """
    side = (spec.image_size, spec.image_size)
    squared = picture.resize(side, Image.Resampling.BICUBIC).convert("YCbCr")
    values_hw3 = (np.asarray(squared, dtype=np.float32) - 128) / 128
    blocks = spec.image_size // DCT_SIDE
    pixels = values_hw3.reshape(blocks, DCT_SIDE, blocks, DCT_SIDE, 3)
    cosines_up = cosines()
    # Divided by the block's side, the first coefficient is the block's mean.
    coefficients = np.einsum("up,gphqk,vq->kuvgh", cosines_up, pixels, cosines_up, optimize=True)
    return torch.from_numpy(coefficients.reshape(1, *spec.shape) / np.float32(DCT_SIDE))


def cosines() -> np.ndarray:
    """Return the matrix (u, p) of the orthonormal discrete cosine transform (type II)."""
    index = np.arange(DCT_SIDE)
    angles_up = np.pi / DCT_SIDE * np.outer(index, index + 0.5)
    matrix_up = np.sqrt(2 / DCT_SIDE) * np.cos(angles_up)
    matrix_up[0] /= np.sqrt(2)
    return matrix_up.astype(np.float32)
