"""Houlsby adapters (Houlsby et al. 2019, *Parameter-efficient transfer learning for NLP*, §2.1).

Shapes: d width of a linear layer's output.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.peft.targets import linear_layers
from model.spec.peft import Adapter


class Bottleneck(nn.Module):
    """Down, GELU, up, and a residual; initially close to the identity (§2.1 and §3.6)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return states of the same shape (…, d)."""
        new: Tensor = states + self.up(F.gelu(self.down(states)))
        return new


def add(backbone: PreTrainedModel, spec: Adapter) -> None:
    """Add an adapter after each target, in place.

    It is a child module of the target, whose own weights keep their names.

    Raises:
        SpecError: a target that matches no linear layer.
    """
    for linear in linear_layers(backbone, spec.targets):
        bottleneck = Bottleneck(linear.out_features, spec.bottleneck)
        linear.adapter = bottleneck.to(next(linear.parameters()).dtype)
        linear.register_forward_hook(_adapt)


def _adapt(linear: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    adapter = linear.adapter
    assert isinstance(adapter, Bottleneck)
    adapted: Tensor = adapter(output)
    return adapted
