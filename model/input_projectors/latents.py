"""Learned query tokens: a Q-Former's queries, a resampler's latents.

Shapes: b batch, q learned tokens, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Latents(nn.Module):
    """Learned tokens (1, q, d), in a module of their own so that ZeRO-3 gathers them."""

    def __init__(self, count: int, width: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, count, width))
        nn.init.normal_(self.tokens, std=std)

    def forward(self, batch: int) -> Tensor:
        """Return the tokens (b, q, d), the same ones for every row."""
        return self.tokens.expand(batch, -1, -1)
