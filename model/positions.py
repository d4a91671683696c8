"""Interpolation of learned position embeddings to another grid of patches.

Shapes: n positions, d width, gg rows and columns of the grid of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions_nd: Tensor, side: int, *, first: int) -> Tensor:
    """Return position embeddings of a square grid, interpolated to side × side patches.

    Bicubic, without aligned corners, in float32 (Bai et al. 2023, Qwen-VL's published code).

    Args:
        positions_nd: `first` embeddings that belong to no patch, then the patches', row by row.
        side: of the new grid.
        first: 1 with a class token, else 0.
    """
    head_nd, patches_nd = positions_nd[:first], positions_nd[first:]
    old = round(len(patches_nd) ** 0.5)
    grid_1dgg = patches_nd.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    new_1dgg = F.interpolate(grid_1dgg, size=(side, side), mode="bicubic", align_corners=False)
    new_nd = new_1dgg.flatten(2)[0].T.to(positions_nd.dtype)
    return torch.cat([head_nd, new_nd])


def fit_positions(name: str, stored: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a stored weight as a model for pictures of another size has it.

    Qwen-VL trains its encoder at 224 pixels and goes on at 448 (Bai et al. 2023, §3.2).

    Args:
        name: of the weight; only position embeddings of encoders are changed.
        stored: of an earlier run.
        shape: of the model's own.

    Returns:
        The weight itself where it fits, or where it is no grid of positions.
    """
    wanted = (*stored.shape[:-2], *shape[-2:-1], *stored.shape[-1:])
    if stored.shape == shape or not fnmatchcase(name, "inputs.*.encoder.*position*"):
        return stored
    if len(shape) < 2 or tuple(shape) != wanted:
        return stored
    for first in (0, 1):
        sides = [math.isqrt(count - first) for count in (stored.shape[-2], shape[-2])]
        if [side * side + first for side in sides] == [stored.shape[-2], shape[-2]]:
            resized_nd = resize_positions(stored.flatten(0, -2), sides[1], first=first)
            return resized_nd.reshape(*shape)
    return stored
