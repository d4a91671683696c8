"""ViT-22B, whose attention and MLP run in parallel.

Dehghani et al. 2023, *Scaling Vision Transformers to 22 Billion Parameters* (arXiv:2302.05442), §2.

Shapes: b pictures, n tokens, d width, h heads, hw height and width in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.encoders import pictures
from model.encoders.blocks import INITIAL_STD, linear
from model.encoders.pictures import normalise
from model.spec import SpecError
from model.spec.vit import Vit22B
from model.weights import Weights, load_published

NORM_EPSILON = 1e-6


def norm(width: int) -> nn.RMSNorm:
    """Return a layer norm "without bias and centering" (§2), which is RMSNorm."""
    return nn.RMSNorm(width, eps=NORM_EPSILON)


class ParallelLayer(nn.Module):
    """y' = norm(x); y = x + MLP(y') + attention(y') (§2, "Parallel layers").

    Queries and keys are normalised per head (§2, "QK Normalization").
    Projections of queries, keys and values have no bias, all other layers have one.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.qkv = linear(width, 3 * width, bias=False)
        self.query_norm = norm(width // heads)
        self.key_norm = norm(width // heads)
        self.out = linear(width, width)
        self.mlp = nn.Sequential(linear(width, mlp_width), nn.GELU(), linear(mlp_width, width))

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Return tokens (b, n, d)."""
        normed_bnd = self.norm(tokens_bnd)
        qkv = self.qkv(normed_bnd).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        attended_bnd: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return tokens_bnd + self.mlp(normed_bnd) + attended_bnd


class Vit22BEncoder(nn.Module):
    """Pictures to the features of their patches, before pooling."""

    def __init__(self, spec: Vit22B) -> None:
        super().__init__()
        self.spec = spec
        self.patches = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size)
        self.positions = nn.Parameter(INITIAL_STD * torch.randn(1, spec.tokens, spec.width))
        self.layers = nn.ModuleList(
            ParallelLayer(spec.width, spec.heads, spec.mlp_width) for _ in range(spec.layers)
        )
        self.norm = norm(spec.width)

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        patches_bdhw = self.patches(pixels_b3hw.to(self.positions.dtype))
        tokens_bnd = patches_bdhw.flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens_bnd = layer(tokens_bnd)
        features_bnd: Tensor = self.norm(tokens_bnd)
        return features_bnd


def build(spec: Vit22B, *, weights: Weights, dtype: torch.dtype) -> Vit22BEncoder:
    """Return the encoder with random weights, or those of a file with our names.

    Raises:
        SpecError: `pretrained` without a file: Google has not published any weights.
    """
    encoder = Vit22BEncoder(spec).to(dtype)
    if weights == "pretrained":
        if spec.weights is None:
            raise SpecError(
                "encoder 'vit_22b': its weights are not published; name a file of your own "
                "or use --weights random"
            )
        load_published(encoder, spec.weights, dict)
    return encoder


def preprocess(spec: Vit22B, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
