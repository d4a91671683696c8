"""Media of several parts: frames of a video, windows of a picture.

Shapes: b media, f parts, n tokens of a part, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def each_part(project: Callable[[Tensor], Tensor], features_bfnd: Tensor) -> Tensor:
    """Project every part by itself, (b·f, n, d) → (b·f, k, d'), and lay the parts end to end.

    Returns:
        Tokens (b, f·k, d').
    """
    media, parts = features_bfnd.shape[:2]
    projected_xkd = project(features_bfnd.flatten(0, 1))
    return projected_xkd.reshape(media, parts * projected_xkd.shape[1], projected_xkd.shape[2])


def encode_parts(encode: Callable[[Tensor], Tensor], values: Tensor, *, whole: bool) -> Tensor:
    """Encode media (b, f, *shape) to features (b, f, n, d).

    Args:
        encode: the encoder; takes (b·f, *shape) to (b·f, n, d), or with `whole` (b, f, *shape) to
            (b, f, n, d), in as many parts as it will.
        values: the media's parts.
        whole: whether the encoder must know which part it looks at.
    """
    if whole:
        return encode(values)
    return encode(values.flatten(0, 1)).unflatten(0, values.shape[:2])


def pool(features_bfnd: Tensor, how: Literal["none", "mean", "spatial_temporal"]) -> Tensor:
    """Pool the frames of a video; see `model.spec.InputBranchSpec`."""
    if how == "none":
        return features_bfnd
    over_time_bnd = features_bfnd.mean(1)
    if how == "mean":
        return over_time_bnd[:, None]
    over_space_bfd = features_bfnd.mean(2)
    return torch.cat([over_space_bfd, over_time_bnd], dim=1)[:, None]
