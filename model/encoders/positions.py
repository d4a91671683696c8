"""Interpolation of a vision transformer's learned position embeddings to another picture size.

Shapes: n positions, d width, gg rows and columns of the grid of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel


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


def resize_tower(
    tower: PreTrainedModel,
    config: PretrainedConfig,
    name: str,
    **options: bool,
) -> PreTrainedModel:
    """Return the tower for pictures of the size in `config`.

    Args:
        tower: a transformers model with a class token.
        config: the tower's, except for the picture size.
        name: of the position embedding in its state dict, (n, d) or (1, n, d).
        options: of the tower's constructor.
    """
    if tower.config.image_size == config.image_size:
        return tower
    state = tower.state_dict()
    positions = state[name]
    side = config.image_size // config.patch_size
    resized_nd = resize_positions(positions.flatten(0, -2), side, first=1)
    state[name] = resized_nd.reshape(*positions.shape[:-2], *resized_nd.shape)
    resized: PreTrainedModel = type(tower).from_pretrained(
        None, config=config, state_dict=state, dtype=tower.dtype, **options
    )
    return resized
