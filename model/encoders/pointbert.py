"""PointBERT, the point-cloud tower of ULIP (Yu et al. 2021, arXiv:2111.14819, §3.1 and §3.3).

A cloud is divided into local patches around centres from farthest point sampling; a mini-PointNet
encodes each patch as a token; a transformer processes the tokens, with the centres as positions.

Shapes: b clouds, p points, c channels, g groups, k points of a group, n = 1 + g tokens, d width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.encoders.blocks import INITIAL_STD, Attention, Block, linear
from model.spec.points import PointBert
from model.weights import Weights, load_published

NORM_EPSILON = 1e-5
POSITION_WIDTH = 128

LEFT_OUT = (
    "visual.",
    "image_projection",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "open_clip_model.",
    "logit_scale",
)
"""Tensors of a ULIP checkpoint for pictures and texts, which are not used here."""


class RunningNorm(nn.BatchNorm1d):
    """Batch normalisation with the stored statistics, also in training.

    Batch statistics would depend on the batch's size and the rank.
    """

    def forward(self, features_bct: Tensor) -> Tensor:
        """Return normalised features (b, c, t)."""
        return F.batch_norm(
            features_bct, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class PatchNet(nn.Module):
    """The mini-PointNet: a patch to a token, independently of the order of its points (§3.1)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.points = nn.Sequential(
            nn.Conv1d(channels, 128, 1), RunningNorm(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.patch = nn.Sequential(
            nn.Conv1d(512, 512, 1), RunningNorm(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, groups_bgkc: Tensor) -> Tensor:
        """Return tokens (b, g, width)."""
        batch = len(groups_bgkc)
        features = self.points(groups_bgkc.flatten(0, 1).transpose(1, 2))
        whole = features.amax(dim=2, keepdim=True).expand_as(features)
        tokens: Tensor = self.patch(torch.cat([whole, features], dim=1)).amax(dim=2)
        return tokens.unflatten(0, (batch, -1))


class PointBertEncoder(nn.Module):
    """Point clouds to tokens."""

    def __init__(self, spec: PointBert) -> None:
        super().__init__()
        self.spec = spec
        width = spec.hidden_width
        self.patches = PatchNet(spec.channels, spec.patch_width)
        self.reduce = linear(spec.patch_width, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_position = nn.Parameter(torch.randn(1, 1, width) * INITIAL_STD)
        self.positions = nn.Sequential(
            linear(3, POSITION_WIDTH), nn.GELU(), linear(POSITION_WIDTH, width)
        )
        self.blocks = nn.ModuleList(
            Block(Attention(width, spec.heads, bias=False), width, spec.mlp_width, NORM_EPSILON)
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        if spec.output == "embedding":
            self.head = linear(2 * width, spec.embedding_width, bias=False)

    def forward(self, clouds_bpc: Tensor) -> Tensor:
        """Return `spec.output` for clouds (b, p, c): (b, 1 or 1 + g, width)."""
        # In bfloat16, distances between near points would be zero.
        groups_bgkc, centres_bg3 = group(clouds_bpc.float(), self.spec.groups, self.spec.group_size)
        dtype, batch = next(self.parameters()).dtype, len(clouds_bpc)
        tokens_bgd = self.reduce(self.patches(groups_bgkc.to(dtype)))
        tokens_bnd = torch.cat([self.cls_token.expand(batch, 1, -1), tokens_bgd], dim=1)
        positions_bgd = self.positions(centres_bg3.to(dtype))
        positions_bnd = torch.cat([self.cls_position.expand(batch, 1, -1), positions_bgd], dim=1)
        for block in self.blocks:
            # Positions are added before every layer (as published; in the paper only once).
            tokens_bnd = block(tokens_bnd + positions_bnd)
        tokens_bnd = self.norm(tokens_bnd)
        if self.spec.output == "tokens":
            return tokens_bnd
        pooled_bd = torch.cat([tokens_bnd[:, 0], tokens_bnd[:, 1:].amax(dim=1)], dim=1)
        if self.spec.output == "embedding":
            pooled_bd = self.head(pooled_bd)
        return pooled_bd[:, None]


def farthest_points(points_bp3: Tensor, count: int) -> Tensor:
    """Return indices (b, count) of farthest point sampling (Qi et al. 2017, PointNet++, §3.2).

    Each next point is the farthest from all before it. It starts at the first point, and is thus
    deterministic; the published code starts at a random one.
    """
    chosen = [points_bp3.new_zeros(len(points_bp3), dtype=torch.long)]
    distance_bp = torch.full_like(points_bp3[..., 0], torch.inf)
    for _ in range(count - 1):
        last_b13 = take(points_bp3, chosen[-1][:, None])
        distance_bp = torch.minimum(distance_bp, (points_bp3 - last_b13).square().sum(-1))
        chosen.append(distance_bp.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def group(clouds_bpc: Tensor, groups: int, size: int) -> tuple[Tensor, Tensor]:
    """Divide clouds into patches of the nearest points around farthest-point centres.

    Returns:
        Patches (b, g, k, c) with xyz relative to their centre, and the centres (b, g, 3).
    """
    points_bp3 = clouds_bpc[..., :3]
    centres_bg3 = take(points_bp3, farthest_points(points_bp3, groups))
    # Matrix products would lose half of the digits of near points.
    distance_bgp = torch.cdist(centres_bg3, points_bp3, compute_mode="donot_use_mm_for_euclid_dist")
    nearest_bgk = distance_bgp.topk(size, dim=-1, largest=False).indices
    patches_bgkc = take(clouds_bpc, nearest_bgk.flatten(1)).unflatten(1, (groups, size))
    xyz = patches_bgkc[..., :3] - centres_bg3[:, :, None]
    return torch.cat([xyz, patches_bgkc[..., 3:]], dim=-1), centres_bg3


def take(rows_bpc: Tensor, index_bg: Tensor) -> Tensor:
    """Return the rows (b, g, c) at the indices."""
    return rows_bpc.gather(1, index_bg[..., None].expand(-1, -1, rows_bpc.shape[-1]))


def build(spec: PointBert, *, weights: Weights, dtype: torch.dtype) -> PointBertEncoder:
    """Return the encoder with published or random weights."""
    encoder = PointBertEncoder(spec)
    if weights == "pretrained":
        load_published(encoder, spec.weights, functools.partial(convert_state_dict, spec))
    return encoder.to(dtype)


def convert_state_dict(spec: PointBert, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of a ULIP checkpoint to ours, except for `LEFT_OUT`.

    Args:
        spec: whether the projection to the shared space is used.
        checkpoint: the file's content, with tensors at the top level or under `state_dict`.
    """
    names = {
        "encoder.first_conv.": "patches.points.",
        "encoder.second_conv.": "patches.patch.",
        "reduce_dim.": "reduce.",
        "cls_pos": "cls_position",
        "pos_embed.": "positions.",
        "blocks.blocks.": "blocks.",
        ".attn.qkv.": ".attention.qkv.",
        ".attn.proj.": ".attention.out.",
        ".mlp.fc1.": ".mlp.0.",
        ".mlp.fc2.": ".mlp.2.",
    }
    ours: dict[str, Tensor] = {}
    for their_name, tensor in checkpoint.get("state_dict", checkpoint).items():
        name = their_name.removeprefix("module.")
        if name == "pc_projection":
            if spec.output == "embedding":
                ours["head.weight"] = tensor.T.contiguous()
        elif not name.startswith(LEFT_OUT):
            name = name.removeprefix("point_encoder.")
            for theirs, our in names.items():
                name = name.replace(theirs, our)
            ours[name] = tensor
    return ours


def preprocess(spec: PointBert, cloud: NDArray[np.float32]) -> Tensor:
    """Return one cloud (1, p, c) of `spec.points` points, centred and scaled to the unit sphere.

    Args:
        spec: number of points and channels.
        cloud: (any, 6), xyz in any unit and rgb in [0, 1]. Too many points are subsampled at
            random, with the same indices for the same count; too few are repeated.

    Raises:
        ValueError: the array has another shape or is empty.
    """
    if cloud.ndim != 2 or cloud.shape[1] != 6 or not len(cloud):
        raise ValueError(f"a cloud of shape {cloud.shape}, must be (points, 6)")
    xyz = cloud[:, :3] - cloud[:, :3].mean(axis=0)
    radius = np.linalg.norm(xyz, axis=1).max()
    xyz = xyz / max(radius, np.finfo(np.float32).tiny)
    points = np.concatenate([xyz, cloud[:, 3:]], axis=1)[:, : spec.channels]
    order = np.random.default_rng(0).permutation(len(points))
    chosen = points[np.resize(order, spec.points)]
    return torch.from_numpy(chosen.astype(np.float32))[None]
