"""CogVLM's projector: a gated MLP, and learned begin and end tokens.

Wang et al. 2023, *CogVLM* (arXiv:2311.03079), §2.1; details from the published code.

Shapes: b media, f segments, n tokens of a segment, d the encoder's width, e the backbone's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.input_projectors.attention import initialise
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.glu_adapter import GluAdapter
from model.text import TextIds
from model.weights import Weights


class GluProjector(nn.Module):
    """Linear layer to the backbone's width, then SwiGLU; `begin` and `end` enclose each segment."""

    def __init__(self, spec: GluAdapter, shape: ProjectorShape) -> None:
        super().__init__()
        width = shape.width_out
        self.enter = nn.Linear(shape.width_in, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, spec.mlp_width, bias=False)
        self.up = nn.Linear(width, spec.mlp_width, bias=False)
        self.down = nn.Linear(spec.mlp_width, width, bias=False)
        self.begin = nn.Parameter(torch.zeros(1, 1, width))
        self.end = nn.Parameter(torch.zeros(1, 1, width))
        self.apply(initialise)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Project features (b, f, n, d) to tokens (b, f·(n + 2), e)."""
        return project_segments(self._project, features_bfnd)

    def _project(self, features_bnd: Tensor) -> Tensor:
        entered_bne = F.gelu(self.norm(self.enter(features_bnd)))
        tokens_bne = self.down(F.silu(self.gate(entered_bne)) * self.up(entered_bne))
        begin_b1e, end_b1e = (
            token.expand(len(tokens_bne), -1, -1) for token in (self.begin, self.end)
        )
        return torch.cat([begin_b1e, tokens_bne, end_b1e], dim=1)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename CogVLM's tensors (`model.vision.` removed) to ours."""
    return {
        "enter.weight": state["linear_proj.linear_proj.weight"],
        "norm.weight": state["linear_proj.norm1.weight"],
        "norm.bias": state["linear_proj.norm1.bias"],
        "gate.weight": state["linear_proj.gate_proj.weight"],
        "up.weight": state["linear_proj.dense_h_to_4h.weight"],
        "down.weight": state["linear_proj.dense_4h_to_h.weight"],
        "begin": state["boi"],
        "end": state["eoi"],
    }


def build(spec: GluAdapter, shape: ProjectorShape, *, weights: Weights = "random") -> GluProjector:
    """Return a new projector with random weights."""
    return GluProjector(spec, shape)
