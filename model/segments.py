"""Media of several segments: frames of a video, tiles of a picture, clips of a sound.

Shapes: b media, f segments, n tokens of a segment, d width, k tokens of a projected segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def project_segments(project: Callable[[Tensor], Tensor], features_bfnd: Tensor) -> Tensor:
    """Project each segment separately, (b·f, n, d) → (b·f, k, d'), and concatenate the tokens.

    Returns:
        Tokens (b, f·k, d').
    """
    media, segments = features_bfnd.shape[:2]
    projected_xkd = project(features_bfnd.flatten(0, 1))
    return projected_xkd.reshape(media, segments * projected_xkd.shape[1], projected_xkd.shape[2])


def encode_segments(
    encode: Callable[[Tensor], Tensor], input_values: Tensor, *, jointly: bool
) -> Tensor:
    """Encode media (b, f, *shape) to features (b, f, n, d).

    Args:
        encode: the encoder; maps (b·f, *shape) to (b·f, n, d) or, with `jointly`, (b, f, *shape) to
            (b, f', n, d) with any number of segments f'.
        input_values: the media's segments.
        jointly: whether the encoder needs all segments of a medium in one tensor.
    """
    if jointly:
        return encode(input_values)
    return encode(input_values.flatten(0, 1)).unflatten(0, input_values.shape[:2])


def pool(features_bfnd: Tensor, how: Literal["none", "mean", "spatial_temporal"]) -> Tensor:
    """Pool the segments of media; see `model.spec.InputBranchSpec`."""
    if how == "none":
        return features_bfnd
    over_time_bnd = features_bfnd.mean(1)
    if how == "mean":
        return over_time_bnd[:, None]
    over_space_bfd = features_bfnd.mean(2)
    return torch.cat([over_space_bfd, over_time_bnd], dim=1)[:, None]
