"""Monkey's encoder: windows of a picture through one tower, each with adapters of its own.

Li et al. 2023, *Monkey* (arXiv:2311.06607), §3.1; details from the published code. The windows pass
the tower as one batch: peft's adapters cannot change within it.

Shapes: b pictures, f parts (windows, then the whole), w windows, n tokens, d width, e another
width, r rank, hw height and width in pixels.
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
from model.encoders.pictures import normalised, pixels_of
from model.encoders.positions import resize_positions
from model.spec.high_resolution import Monkey
from model.weights import Weights


class WindowLora(nn.Module):
    """A low-rank layer per window (Hu et al. 2021, §4.1) with a learned scale; 0 for the whole."""

    def __init__(self, windows: int, width_in: int, width_out: int, rank: int, drop: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop)
        bound = width_in**-0.5
        self.down_wrd = nn.Parameter(torch.empty(windows, rank, width_in).uniform_(-bound, bound))
        self.up_wer = nn.Parameter(torch.zeros(windows, width_out, rank))
        self.scale_w = nn.Parameter(torch.ones(windows))

    def forward(self, tokens_bfnd: Tensor) -> Tensor:
        """Return what is to be added to the layer's output, (b, f, n, e)."""
        windows_bwnd = self.dropout(tokens_bfnd[:, : len(self.down_wrd)])
        low_bwnr = torch.einsum("bwnd,wrd->bwnr", windows_bwnd, self.down_wrd)
        up_wer = self.up_wer * self.scale_w[:, None, None]
        return F.pad(torch.einsum("bwnr,wer->bwne", low_bwnr, up_wer), (0, 0, 0, 0, 0, 1))


class LayerAdapters(nn.Module):
    """The adapters of one layer; the MLP's goes round its norm, too."""

    def __init__(self, spec: Monkey) -> None:
        super().__init__()
        windows, width = spec.windows, spec.width
        self.qkv = WindowLora(windows, width, 3 * width, spec.rank, spec.dropout)
        self.out = WindowLora(windows, width, width, spec.rank, spec.dropout)
        self.mlp = WindowLora(windows, width, width, spec.mlp_rank, spec.dropout)

    def forward(self, layer: CLIPEncoderLayer, tokens_bfnd: Tensor) -> Tensor:
        """Return tokens (b, f, n, d) behind one layer of the tower and the adapters beside it."""
        attention, read_bfnd = layer.self_attn, layer.layer_norm1(tokens_bfnd)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([project(read_bfnd) for project in projections], dim=-1)
        qkv = (qkv + self.qkv(read_bfnd)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        mixed_bfnd = mixed.reshape(tokens_bfnd.shape)
        tokens_bfnd = tokens_bfnd + attention.out_proj(mixed_bfnd) + self.out(mixed_bfnd)
        changed_bfnd: Tensor = layer.mlp(layer.layer_norm2(tokens_bfnd))
        return tokens_bfnd + changed_bfnd + self.mlp(tokens_bfnd)


class MonkeyEncoder(nn.Module):
    """The parts of a picture to the features of their patches."""

    def __init__(self, spec: Monkey, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.spec = spec
        self.tower = tower
        depth = range(spec.tower.layers + 1)[spec.tower.feature_layer]
        self.adapters = nn.ModuleList(LayerAdapters(spec) for _ in range(depth))

    def forward(self, pixels_bf3hw: Tensor) -> Tensor:
        """Return features (b, f, n, d) of the windows and the whole of normalised pictures."""
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
    """Return Monkey's tensors, as they stand under `transformer.visual.`, under our names.

    Left out: the resampler and what is behind it (`attn_pool`, `ln_post`, `proj`). The tower's
    class token and last norm, which Monkey has not and nothing reads, are zeros.
    """
    side, width = spec.tower.image_size // spec.tower.patch_size, spec.width
    positions_nd = resize_positions(state["positional_embedding"], side, first=0)
    nothing = positions_nd.new_zeros(1, width)
    ours = {
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "embeddings.position_embedding.weight": torch.cat([nothing, positions_nd]),
        "pre_layrnorm.weight": state["ln_pre.weight"],
        "pre_layrnorm.bias": state["ln_pre.bias"],
        "embeddings.class_embedding": nothing[0],
        "post_layernorm.weight": nothing[0],
        "post_layernorm.bias": nothing[0],
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
        loras = [f"{theirs}_lora.{window}." for window in range(spec.windows)]
        ups = [layer[f"{lora}lora_b.weight"] for lora in loras]
        if own == "qkv":
            ups = [_by_head(up, spec.tower.heads) for up in ups]
        ours[f"{own}.down_wrd"] = torch.stack([layer[f"{lora}lora_a.weight"] for lora in loras])
        ours[f"{own}.up_wer"] = torch.stack(ups)
        ours[f"{own}.scale_w"] = torch.cat([layer[f"{lora}lora_scale"] for lora in loras])
    return ours


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """Return rows laid out (head, q k v, channel) as (q k v, head, channel)."""
    return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def build(spec: Monkey, *, weights: Weights, dtype: torch.dtype) -> MonkeyEncoder:
    """Return the encoder with published or random weights; new adapters change nothing."""
    return MonkeyEncoder(spec, load_tower(spec.tower, weights=weights, dtype=dtype)).to(dtype)


def preprocess(spec: Monkey, picture: Image.Image) -> Tensor:
    """Return normalised pixels (windows + 1, 3, side, side): windows row by row, then the whole."""
    side = spec.tower.image_size
    size = (spec.columns * side, spec.rows * side)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    pixels_3hw = normalised(pixels_of(resized), mean=spec.tower.mean, std=spec.tower.std)
    rows = pixels_3hw.unflatten(2, (spec.columns, side)).unflatten(1, (spec.rows, side))
    windows_w3hw = rows.permute(1, 3, 0, 2, 4).flatten(0, 1)
    # As published: from the large picture, without the smoothing that PIL's resizing has.
    whole_13hw = F.interpolate(pixels_3hw[None], size=(side, side), mode="bicubic")
    return torch.cat([windows_w3hw, whole_13hw])
