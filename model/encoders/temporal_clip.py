"""CLIP with temporal convolutions, the encoder of mPLUG-Owl's video release.

X-PLUG/mPLUG-Owl, `mplug_owl_video`; the paper (Ye et al. 2023) covers pictures only.

Shapes: b videos, f frames, n tokens of a frame, d width, c width of the convolution, x tokens of a
batch, hw height and width in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel

from model.encoders import clip
from model.encoders.pictures import normalise
from model.spec.video import TemporalClip
from model.weights import Weights, load_published, rename

KERNEL = 3
"""Kernel size of the convolutions, in frames."""


class LocalTemporal(nn.Module):
    """A bottleneck with a depthwise temporal convolution per patch; initially zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // 2
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, narrow)
        self.convolution = nn.Conv1d(narrow, narrow, KERNEL, padding=KERNEL // 2, groups=narrow)
        self.up = nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens_bfnd: Tensor) -> Tensor:
        """Return the addition to the tokens, (b, f, n, d)."""
        patches_bfnc = self.down(self.norm(tokens_bfnd[:, :, 1:]))
        batch, _, count, _ = patches_bfnc.shape
        over_time_xcf = patches_bfnc.permute(0, 2, 3, 1).flatten(0, 1)
        mixed_xcf = self.convolution(over_time_xcf)
        # The sigmoid approximation of GELU, as in CLIP.
        active_xcf = mixed_xcf * torch.sigmoid(1.702 * mixed_xcf)
        active_bfnc = active_xcf.unflatten(0, (batch, count)).permute(0, 3, 1, 2)
        # The published module returns the class token, which the residual thus doubles per layer.
        return torch.cat([tokens_bfnd[:, :, :1], self.up(active_bfnc)], dim=2)


class TemporalClipEncoder(nn.Module):
    """The frames of a video to features that depend on adjacent frames."""

    def __init__(self, spec: TemporalClip, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower
        self.temporal = nn.ModuleList(LocalTemporal(spec.width) for _ in range(spec.tower.layers))

    def forward(self, pixels_bf3hw: Tensor) -> Tensor:
        """Return features (b, f, n, d) of frames (b, f, 3, h, w), uint8 or normalised."""
        dtype = next(self.tower.parameters()).dtype
        media = pixels_bf3hw.shape[:2]
        pixels_bf3hw = normalise(pixels_bf3hw, self.spec.tower.processor)
        embedded = self.tower.embeddings(pixels_bf3hw.to(dtype).flatten(0, 1))
        tokens_bfnd = self.tower.pre_layrnorm(embedded).unflatten(0, media)
        for temporal, layer in zip(self.temporal, self.tower.encoder.layers, strict=True):
            if media[1] > 1:
                tokens_bfnd = tokens_bfnd + temporal(tokens_bfnd)
            tokens = layer(tokens_bfnd.flatten(0, 1), attention_mask=None)
            tokens_bfnd = tokens.unflatten(0, media)
        features_bfnd: Tensor = self.tower.post_layernorm(tokens_bfnd)
        return features_bfnd


def build(spec: TemporalClip, *, weights: Weights, dtype: torch.dtype) -> TemporalClipEncoder:
    """Return the encoder; its convolutions are new unless the spec names published ones."""
    own = weights == "pretrained" and spec.owl_weights
    tower = clip.load_tower(spec.tower, weights="random" if own else weights, dtype=dtype)
    encoder = TemporalClipEncoder(spec, tower).to(dtype)
    if own:
        load_published(encoder, own, lambda state: convert_state_dict(spec, state))
    return encoder


def convert_state_dict(spec: TemporalClip, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename mPLUG-Owl's tensors to ours; only the vision model's are used."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("vision_model."):
            continue
        own = rename(_TEMPORAL.sub(r"temporal.\1", name), _NAMES)
        if tensor.ndim == 5:  # a 3-D convolution with a spatial kernel of one pixel
            over_time = tensor[..., 0, 0]
            found[own] = over_time if ".convolution." in own else over_time[..., 0]
        elif ".qkv." in own:
            by_head = tensor.unflatten(0, (spec.tower.heads, 3, -1)).transpose(0, 1)
            for letter, rows in zip("qkv", by_head.flatten(1, 2), strict=True):
                found[own.replace("qkv", f"{letter}_proj")] = rows
        else:
            # Position embeddings and class token have a batch dimension.
            found[own] = tensor.squeeze() if tensor.ndim == 3 else tensor
    return found


_TEMPORAL = re.compile(r"^vision_model\.encoder\.layers\.(\d+)\.temporal")
_NAMES = (
    ("vision_model.", "tower."),
    (".down_proj.", ".down."),
    (".conv.", ".convolution."),
    (".up_proj.", ".up."),
    (".ln.", ".norm."),
    ("cls_token", "class_embedding"),
    ("patch_embed.", "patch_embedding."),
    ("position_embedding", "position_embedding.weight"),
    ("embeddings.pre_layernorm.", "pre_layrnorm."),
    ("input_layernorm", "layer_norm1"),
    ("post_attention_layernorm", "layer_norm2"),
    ("query_key_value", "qkv"),
    ("self_attn.dense", "self_attn.out_proj"),
)


def preprocess(spec: TemporalClip, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of one RGB frame."""
    return clip.preprocess(spec.tower, picture)
