"""MiniGPT-v2's projector: adjacent tokens are concatenated, then a linear layer.

Chen et al. 2023, *MiniGPT-v2* (arXiv:2310.09478), §2.

Shapes: b media, f segments, x segments of all media, n tokens of a segment, d the encoder's width,
j group size, k tokens of a medium, v the backbone's width.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.input_projectors.attention import initialise
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.projectors import TokenConcat
from model.text import TextIds
from model.weights import Weights


class TokenConcatProjector(nn.Module):
    """Token i is W [x_ji; …; x_ji+j-1] + b: groups of j tokens in raster order, not squares."""

    def __init__(self, spec: TokenConcat, shape: ProjectorShape) -> None:
        super().__init__()
        self.group_size = spec.group_size
        self.linear = nn.Linear(spec.group_size * shape.width_in, shape.width_out)
        initialise(self.linear)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        return project_segments(self._concat, features_bfnd)

    def _concat(self, features_xnd: Tensor) -> Tensor:
        groups = features_xnd.unflatten(1, (-1, self.group_size)).flatten(2)
        tokens_xkv: Tensor = self.linear(groups)
        return tokens_xkv


def build(
    spec: TokenConcat, shape: ProjectorShape, *, weights: Weights = "random"
) -> TokenConcatProjector:
    """Return a new projector with random weights."""
    return TokenConcatProjector(spec, shape)
