"""Monkey's encoder: tiles of a picture through one tower, each with adapters of its own.

Li et al. 2023, *Monkey* (arXiv:2311.06607), §3.1, where tiles are called windows; details from the
published code. All tiles pass through the tower as one batch, for which peft's adapters cannot be
used: they cannot change within a batch.

Shapes: b pictures, f segments (tiles, then the whole picture), w tiles, n tokens, d width, e
another width, r rank, hw height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from model.encoders.clip import load_tower
from model.encoders.pictures import normalise, to_pixels
from model.positions import resize_positions
from model.spec.high_resolution import Monkey
from model.weights import Weights


class TileLora(nn.Module):
    """LoRA per tile (Hu et al. 2021, §4.1) with a learned scale; zero for the whole picture."""

    def __init__(self, tiles: int, width_in: int, width_out: int, rank: int, drop: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop)
        bound = width_in**-0.5
        self.down_wrd = nn.Parameter(torch.empty(tiles, rank, width_in).uniform_(-bound, bound))
        self.up_wer = nn.Parameter(torch.zeros(tiles, width_out, rank))
        self.scale_w = nn.Parameter(torch.ones(tiles))

    def forward(self, tokens_bfnd: Tensor) -> Tensor:
        """Return the addition to the layer's output, (b, f, n, e)."""
        tiles_bwnd = self.dropout(tokens_bfnd[:, : len(self.down_wrd)])
        low_bwnr = torch.einsum("bwnd,wrd->bwnr", tiles_bwnd, self.down_wrd)
        up_wer = self.up_wer * self.scale_w[:, None, None]
        return F.pad(torch.einsum("bwnr,wer->bwne", low_bwnr, up_wer), (0, 0, 0, 0, 0, 1))


class LayerAdapters(nn.Module):
    """The adapters of one layer; the MLP's input is not normed."""

    def __init__(self, spec: Monkey) -> None:
        super().__init__()
        tiles, width = spec.tiles, spec.width
        self.qkv = TileLora(tiles, width, 3 * width, spec.rank, spec.dropout)
        self.out = TileLora(tiles, width, width, spec.rank, spec.dropout)
        self.mlp = TileLora(tiles, width, width, spec.mlp_rank, spec.dropout)

    def forward(self, layer: CLIPEncoderLayer, tokens_bfnd: Tensor) -> Tensor:
        """Return tokens (b, f, n, d) after one layer of the tower with its adapters."""
        attention, normed_bfnd = layer.self_attn, layer.layer_norm1(tokens_bfnd)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([project(normed_bfnd) for project in projections], dim=-1)
        qkv = (qkv + self.qkv(normed_bfnd)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        mixed_bfnd = mixed.reshape(tokens_bfnd.shape)
        tokens_bfnd = tokens_bfnd + attention.out_proj(mixed_bfnd) + self.out(mixed_bfnd)
        mlp_bfnd: Tensor = layer.mlp(layer.layer_norm2(tokens_bfnd))
        return tokens_bfnd + mlp_bfnd + self.mlp(tokens_bfnd)


class MonkeyEncoder(nn.Module):
    """The tiles of a picture, and the whole picture, to features of their patches."""

    def __init__(self, spec: Monkey, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower
        depth = range(spec.tower.layers + 1)[spec.tower.feature_layer]
        self.adapters = nn.ModuleList(LayerAdapters(spec) for _ in range(depth))

    def forward(self, pixels_bf3hw: Tensor) -> Tensor:
        """Return features (b, f, n, d) of normalised tiles and whole pictures."""
        spec = self.spec.tower
        dtype = next(self.tower.parameters()).dtype
        embedded = self.tower.embeddings(pixels_bf3hw.to(dtype).flatten(0, 1))
        if not spec.attend_cls:
            embedded = embedded[:, 1:]
        tokens_bfnd = self.tower.pre_layrnorm(embedded).unflatten(0, pixels_bf3hw.shape[:2])
        for adapters, layer in zip(self.adapters, self.tower.encoder.layers, strict=False):
            tokens_bfnd = adapters(layer, tokens_bfnd)
        return tokens_bfnd[:, :, 1:] if spec.attend_cls and not spec.keep_cls else tokens_bfnd


def convert_state_dict(spec: Monkey, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Monkey's tensors (`transformer.visual.` removed) to ours.

    Dropped: the resampler and everything after it (`attn_pool`, `ln_post`, `proj`). The tower's
    class token and last norm, which Monkey lacks and which are not used, are zeros.
    """
    side, width = spec.tower.image_size // spec.tower.patch_size, spec.width
    positions_nd = resize_positions(state["positional_embedding"], side, first=0)
    zeros = positions_nd.new_zeros(1, width)
    ours = {
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "embeddings.position_embedding.weight": torch.cat([zeros, positions_nd]),
        "pre_layrnorm.weight": state["ln_pre.weight"],
        "pre_layrnorm.bias": state["ln_pre.bias"],
        "embeddings.class_embedding": zeros[0],
        "post_layernorm.weight": zeros[0],
        "post_layernorm.bias": zeros[0],
    }
    adapters = {}
    for number in range(spec.tower.layers):
        theirs = f"transformer.resblocks.{number}."
        layer = {
            name.removeprefix(theirs): tensor
            for name, tensor in state.items()
            if name.startswith(theirs)
        }
        for name, tensor in _layer_weights(layer, spec.tower.heads).items():
            ours[f"encoder.layers.{number}.{name}"] = tensor
        for name, tensor in _adapter_weights(layer, spec).items():
            adapters[f"adapters.{number}.{name}"] = tensor
    return {f"tower.{name}": tensor for name, tensor in ours.items()} | adapters


def _layer_weights(layer: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    ours = {}
    for kind in ("weight", "bias"):
        qkv = _by_head(layer[f"attn.in_proj.{kind}"], heads)
        for letter, tensor in zip("qkv", qkv.chunk(3), strict=True):
            ours[f"self_attn.{letter}_proj.{kind}"] = tensor
        ours[f"self_attn.out_proj.{kind}"] = layer[f"attn.out_proj.{kind}"]
        ours[f"layer_norm1.{kind}"] = layer[f"ln_1.{kind}"]
        ours[f"layer_norm2.{kind}"] = layer[f"ln_2.{kind}"]
        ours[f"mlp.fc1.{kind}"] = layer[f"mlp.c_fc.{kind}"]
        ours[f"mlp.fc2.{kind}"] = layer[f"mlp.c_proj.{kind}"]
    return ours


def _adapter_weights(layer: Mapping[str, Tensor], spec: Monkey) -> dict[str, Tensor]:
    ours = {}
    for own, theirs in (("qkv", "attn.in_proj"), ("out", "attn.out_proj"), ("mlp", "mlp")):
        loras = [f"{theirs}_lora.{tile}." for tile in range(spec.tiles)]
        ups = [layer[f"{lora}lora_b.weight"] for lora in loras]
        if own == "qkv":
            ups = [_by_head(up, spec.tower.heads) for up in ups]
        ours[f"{own}.down_wrd"] = torch.stack([layer[f"{lora}lora_a.weight"] for lora in loras])
        ours[f"{own}.up_wer"] = torch.stack(ups)
        ours[f"{own}.scale_w"] = torch.cat([layer[f"{lora}lora_scale"] for lora in loras])
    return ours


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows from (head, q k v, channel) to (q k v, head, channel)."""
    return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def build(spec: Monkey, *, weights: Weights, dtype: torch.dtype) -> MonkeyEncoder:
    """Return the encoder with published or random weights; new adapters are zero."""
    return MonkeyEncoder(spec, load_tower(spec.tower, weights=weights, dtype=dtype)).to(dtype)


def preprocess(spec: Monkey, picture: Image.Image) -> Tensor:
    """Return normalised pixels (tiles + 1, 3, side, side): tiles row by row, then the whole."""
    side = spec.tower.image_size
    size = (spec.columns * side, spec.rows * side)
    whole = picture.resize(size, Image.Resampling[spec.tower.processor.resample.upper()])
    pixels_3hw = normalise(to_pixels(whole), spec.tower.processor)
    rows = pixels_3hw.unflatten(2, (spec.columns, side)).unflatten(1, (spec.rows, side))
    tiles_w3hw = rows.permute(1, 3, 0, 2, 4).flatten(0, 1)
    # As published: from the resized picture, and without the antialiasing of PIL.
    whole_13hw = F.interpolate(pixels_3hw[None], size=(side, side), mode="bicubic")
    return torch.cat([tiles_w3hw, whole_13hw])
