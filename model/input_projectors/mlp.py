"""The MLP projector of LLaVA (depth 1: linear), LLaVA-1.5 (depth 2: `mlp2x_gelu`) and CoDi-2.

Features may be shortened before it: stacked or pooled frames, squares of patches.

Shapes: b media, f segments, x segments of all media, n tokens of a segment, d the encoder's width,
k shortened tokens, e their width, g side of the grid of patches, j factor.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from model.segments import project_segments
from model.spec import Mlp, ProjectorShape
from model.text import TextIds
from model.weights import Weights


class MlpProjector(nn.Module):
    """Linear layers with GELU and optional norms in between; the first one changes the width."""

    def __init__(self, spec: Mlp, shape: ProjectorShape) -> None:
        super().__init__()
        self.spec = spec
        width_in, width = spec.merged * shape.width_in, shape.width_out
        layers: list[nn.Module] = [nn.LayerNorm(width_in)] if spec.norm_input else []
        layers.append(nn.Linear(width_in, width))
        for _ in range(spec.depth - 1):
            norm = [nn.LayerNorm(width)] if spec.norm else []
            layers += [nn.GELU(), *norm, nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Project features (b, f, n, width_in) to tokens (b, f·k, width_out)."""
        return project_segments(
            lambda features_xnd: self.layers(shorten(self.spec, features_xnd)), features_bfnd
        )


def shorten(spec: Mlp, features_xnd: Tensor) -> Tensor:
    """Merge tokens as `spec.shorten` says: (x, n, d) to (x, k, e)."""
    factor = spec.factor
    match spec.shorten:
        case "stack":
            missing = -features_xnd.shape[1] % factor
            padded_xnd = F.pad(features_xnd, (0, 0, 0, missing))
            return padded_xnd.unflatten(1, (-1, factor)).flatten(2)
        case "pool":
            # With `ceil_mode`, the last mean is of the tokens that are left.
            return F.avg_pool1d(features_xnd.mT, factor, ceil_mode=True).mT
        case "pool_grid":
            side = math.isqrt(features_xnd.shape[1])
            grid_xdgg = features_xnd.mT.unflatten(2, (side, side))
            return F.avg_pool2d(grid_xdgg, factor).flatten(2).mT
        case "pixel_shuffle":
            side = math.isqrt(features_xnd.shape[1]) // factor
            squares = features_xnd.unflatten(1, (side, factor, side, factor))
            return squares.transpose(2, 3).flatten(3).flatten(1, 2)
        case _:
            return features_xnd


def build(spec: Mlp, shape: ProjectorShape, *, weights: Weights) -> MlpProjector:
    """Return a new projector with random weights."""
    return MlpProjector(spec, shape)
