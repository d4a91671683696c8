"""EVA-02-CLIP-E's vision transformer, which normalises the outputs of attention and MLP.

Sun et al. 2023, *EVA-CLIP* (arXiv:2303.15389); as in CogVLM (arXiv:2311.03079, §2.1).

Shapes: b pictures, n tokens, d width, hw height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from model.encoders import pictures
from model.encoders.blocks import INITIAL_STD, Attention, linear
from model.encoders.pictures import normalise
from model.positions import resize_positions
from model.spec.image import Eva2Clip
from model.weights import Weights, load_published, rename

NORM_EPSILON = 1e-6
OWN_NAMES = (
    ("patch_embed.proj", "patches"),
    ("cls_token", "cls"),
    ("pos_embed", "positions"),
    ("blocks.", "layers."),
    ("attn.proj", "attention.out"),
    ("attn.", "attention."),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
)
"""Substrings of timm's names → ours."""


class PostNormLayer(nn.Module):
    """x + LN(attention(x)), then x + LN(MLP(x)): outputs are normalised, not inputs."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, bias=True)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.Sequential(linear(width, mlp_width), nn.GELU(), linear(mlp_width, width))
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Return tokens (b, n, d)."""
        tokens_bnd = tokens_bnd + self.norm1(self.attention(tokens_bnd))
        out_bnd: Tensor = tokens_bnd + self.norm2(self.mlp(tokens_bnd))
        return out_bnd


class Eva2ClipEncoder(nn.Module):
    """Pictures to the features of their patches."""

    def __init__(self, spec: Eva2Clip) -> None:
        super().__init__()
        self.spec = spec
        self.patches = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size)
        self.cls = nn.Parameter(INITIAL_STD * torch.randn(1, 1, spec.width))
        self.positions = nn.Parameter(INITIAL_STD * torch.randn(1, 1 + spec.tokens, spec.width))
        self.layers = nn.ModuleList(
            PostNormLayer(spec.width, spec.heads, spec.mlp_width) for _ in range(spec.layers)
        )

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of the patches of (b, 3, h, w), uint8 or normalised."""
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        patches_bnd = self.patches(pixels_b3hw.to(self.cls.dtype)).flatten(2).transpose(1, 2)
        cls_b1d = self.cls.expand(len(patches_bnd), -1, -1)
        tokens_bnd = torch.cat([cls_b1d, patches_bnd], dim=1) + self.positions
        for layer in self.layers:
            tokens_bnd = layer(tokens_bnd)
        return tokens_bnd[:, 1:]


def convert_state_dict(spec: Eva2Clip, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a timm checkpoint to ours.

    Dropped: layers beyond `spec.layers`, and the norm and the head after them.
    """
    ours = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")
        unused = module == "blocks" and int(rest.partition(".")[0]) >= spec.layers
        if unused or module in ("norm", "head"):
            continue
        ours[rename(name, OWN_NAMES)] = tensor
    for name in [name for name in ours if name.endswith("q_bias")]:
        query, value = ours.pop(name), ours.pop(name.replace("q_bias", "v_bias"))
        # Keys have no bias: it would shift all logits of a query equally.
        bias = torch.cat([query, torch.zeros_like(query), value])
        ours[name.replace("q_bias", "qkv.bias")] = bias
    if "positions" in ours:
        side = spec.image_size // spec.patch_size
        ours["positions"] = resize_positions(ours["positions"][0], side, first=1)[None]
    return ours


def build(spec: Eva2Clip, *, weights: Weights, dtype: torch.dtype) -> Eva2ClipEncoder:
    """Return the encoder with published or random weights."""
    encoder = Eva2ClipEncoder(spec).to(dtype)
    if weights == "pretrained":
        load_published(encoder, spec.weights, partial(convert_state_dict, spec))
    return encoder


def preprocess(spec: Eva2Clip, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
