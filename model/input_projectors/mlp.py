"""The MLP projector of LLaVA (depth 1: linear), LLaVA-1.5 (depth 2: `mlp2x_gelu`) and CoDi-2."""

from __future__ import annotations

from torch import Tensor, nn

from model.segments import project_segments
from model.spec import Mlp, ProjectorShape
from model.text import TextIds
from model.weights import Weights


class MlpProjector(nn.Module):
    """Linear layers with GELU and optional norms in between; the first one changes the width."""

    def __init__(self, spec: Mlp, shape: ProjectorShape) -> None:
        super().__init__()
        width = shape.width_out
        layers: list[nn.Module] = [nn.Linear(shape.width_in, width)]
        for _ in range(spec.depth - 1):
            norm = [nn.LayerNorm(width)] if spec.norm else []
            layers += [nn.GELU(), *norm, nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Project features (b, f, n, width_in) to tokens (b, f·n, width_out)."""
        return project_segments(self.layers, features_bfnd)


def build(spec: Mlp, shape: ProjectorShape, *, weights: Weights) -> MlpProjector:
    """Return a new projector with random weights."""
    return MlpProjector(spec, shape)
