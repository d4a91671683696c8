"""MiniGPT-v2's projector: neighbouring tokens laid end to end, then a linear layer.

Chen et al. 2023, *MiniGPT-v2* (arXiv:2310.09478), §2.

Shapes: b media, f parts, n tokens of a part, d the encoder's width, j neighbours, k tokens of a
medium, v the backbone's width.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.input_projectors.attention import initialise
from model.parts import each_part
from model.spec import ProjectorShape
from model.spec.projectors import Join
from model.text import TextIds
from model.weights import Weights


class JoinProjector(nn.Module):
    """Token i is W [x_ji; …; x_ji+j-1] + b: neighbours in raster order, not squares."""

    def __init__(self, spec: Join, ends: ProjectorShape) -> None:
        super().__init__()
        self.neighbours = spec.neighbours
        self.linear = nn.Linear(spec.neighbours * ends.width_in, ends.width_out)
        initialise(self.linear)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        return each_part(self._join, features_bfnd)

    def _join(self, features_xnd: Tensor) -> Tensor:
        joined = features_xnd.unflatten(1, (-1, self.neighbours)).flatten(2)
        tokens_xkv: Tensor = self.linear(joined)
        return tokens_xkv


def build(spec: Join, ends: ProjectorShape, *, weights: Weights = "random") -> JoinProjector:
    """Return a new projector with random weights."""
    return JoinProjector(spec, ends)
