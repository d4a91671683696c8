"""EVA-CLIP with UniFormerV2's global multi-head relation aggregators, VideoChat's encoder.

Li et al. 2023, *VideoChat* (arXiv:2305.06355), §3.3.1; Li et al. 2022, *UniFormerV2*
(arXiv:2211.09552), §3.2; details from VideoChat's published code.

Shapes: b videos, f frames, n tokens of a frame, d width, m the MLP's width, x tokens of a video
(f·n + 1), gg rows and columns of patches, hw height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import Blip2VisionModel

from model.encoders import eva_clip
from model.encoders.pictures import normalise
from model.input_projectors.attention import CrossAttention
from model.input_projectors.latents import Latents
from model.spec.video import UniformerEva
from model.weights import Weights, load_published, rename


class Aggregator(nn.Module):
    """One layer of the additional token: attention to all frames, then an MLP.

    Frames get position encodings from a depthwise convolution over time and space. Initially it is
    the identity: its last linear layers are zero.
    """

    def __init__(self, spec: UniformerEva) -> None:
        super().__init__()
        width = spec.width
        self.positions = nn.Conv3d(width, width, kernel_size=3, padding=1, groups=width)
        self.attention = CrossAttention(width, spec.tower.heads)
        self.norm_token = nn.LayerNorm(width)
        self.norm_frames = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, spec.tower.mlp_width)
        self.dropout = nn.Dropout(spec.dropout)
        self.down = nn.Linear(spec.tower.mlp_width, width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for last in (self.attention.out, self.down):
            nn.init.zeros_(last.weight)

    def forward(self, token_b1d: Tensor, frames_bfnd: Tensor) -> Tensor:
        """Return the token (b, 1, d) after attending to one layer's frames (b, f, n, d)."""
        normed_bfnd = self.norm_frames(frames_bfnd)
        patches_bfnd = normed_bfnd[:, :, 1:]
        side = math.isqrt(patches_bfnd.shape[2])
        grid_bdfgg = patches_bfnd.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        patches_bfnd = patches_bfnd + self.positions(grid_bdfgg).flatten(3).permute(0, 2, 3, 1)
        keys_bnd = torch.cat([normed_bfnd[:, :, :1], patches_bfnd], dim=2).flatten(1, 2)
        token_b1d = token_b1d + self.attention(self.norm_token(token_b1d), keys_bnd, keys_bnd)
        inner_b1m = self.dropout(gelu(self.up(self.norm_mlp(token_b1d))))
        out_b1d: Tensor = token_b1d + self.down(inner_b1m)
        return out_b1d


class UniformerEvaEncoder(nn.Module):
    """The frames of a video to the features of all frames and one token of the whole video."""

    def __init__(self, spec: UniformerEva, tower: Blip2VisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower
        self.token = Latents(1, spec.width, std=0.0)
        self.aggregators = nn.ModuleList(Aggregator(spec) for _ in range(spec.aggregators))

    def forward(self, pixels_bf3hw: Tensor) -> Tensor:
        """Return features (b, 1, x, d), one segment, of frames (b, f, 3, h, w)."""
        dtype = next(self.tower.parameters()).dtype
        pixels_bf3hw = normalise(pixels_bf3hw, self.spec.tower.processor)
        frames_bfnd = self.tower.embeddings(pixels_bf3hw.to(dtype).flatten(0, 1)).unflatten(
            0, pixels_bf3hw.shape[:2]
        )
        token_b1d = self.token(len(pixels_bf3hw))
        layers = self.tower.encoder.layers
        aggregators = [None] * (len(layers) - len(self.aggregators)) + list(self.aggregators)
        for layer, aggregator in zip(layers, aggregators, strict=True):
            frames_bfnd = layer(frames_bfnd.flatten(0, 1)).unflatten(0, pixels_bf3hw.shape[:2])
            if aggregator is not None:
                token_b1d = aggregator(token_b1d, frames_bfnd)
        if not self.spec.tower.keep_cls:
            frames_bfnd = frames_bfnd[:, :, 1:]
        all_bxd = torch.cat([frames_bfnd.flatten(1, 2), token_b1d], dim=1)
        features_bxd: Tensor = self.tower.post_layernorm(all_bxd)
        return features_bxd[:, None]


def build(spec: UniformerEva, *, weights: Weights, dtype: torch.dtype) -> UniformerEvaEncoder:
    """Return the encoder; its aggregators are new unless the spec names published ones."""
    tower = eva_clip.load_tower(spec.tower, weights=weights, dtype=dtype)
    encoder = UniformerEvaEncoder(spec, tower).to(dtype)
    if weights == "pretrained" and spec.aggregator_weights:
        frozen = tower.state_dict(prefix="tower.")
        load_published(
            encoder, spec.aggregator_weights, lambda state: frozen | convert_state_dict(state)
        )
    return encoder


def convert_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename VideoChat's tensors to ours: the trained ones of its encoder, and the norm after it.

    Args:
        state: of its checkpoint, possibly under `model`; all other tensors are dropped.
    """
    named: Mapping[str, Tensor] = state.get("model", state)
    found: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if name.startswith("ln_vision."):
            found[rename(name, _NAMES)] = tensor
        if not name.startswith("visual_encoder.gmhra"):
            continue
        own = rename(name.removeprefix("visual_encoder."), _NAMES)
        prefix, packed, kind = own.partition("in_proj_")
        if packed:
            for projection, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{prefix}{projection}.{kind}"] = rows
        else:
            found[own] = tensor
    return found


_NAMES = (
    ("ln_vision.", "tower.post_layernorm."),
    ("gmhra_cls_token", "token.tokens"),
    ("gmhra.", "aggregators."),
    (".dpe.", ".positions."),
    (".attn.out_proj.", ".attention.out."),
    (".attn.", ".attention."),
    (".ln_1.", ".norm_token."),
    (".ln_2.", ".norm_mlp."),
    (".ln_3.", ".norm_frames."),
    (".mlp.c_fc.", ".up."),
    (".mlp.c_proj.", ".down."),
)


def preprocess(spec: UniformerEva, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of one RGB frame."""
    return eva_clip.preprocess(spec.tower, picture)
