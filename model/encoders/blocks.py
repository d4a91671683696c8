"""The standard transformer layer, shared by several encoders.

Shapes: b sequences, n tokens, d width, h heads, s keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, §3.2).

    Args:
        width, heads: of the tokens; the width is split over the heads.
        bias: whether queries, keys and values have biases.
        extra_key: whether a learned key and value are appended to those of the tokens, as in
            `torch.nn.MultiheadAttention` with `add_bias_kv`.
    """

    def __init__(self, width: int, heads: int, *, bias: bool, extra_key: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width, bias=bias)
        self.out = linear(width, width)
        if extra_key:
            self.key = nn.Parameter(torch.randn(1, 1, width) * INITIAL_STD)
            self.value = nn.Parameter(torch.randn(1, 1, width) * INITIAL_STD)
        self.extra_key = extra_key

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Return mixed tokens (b, n, d)."""
        batch = len(tokens_bnd)
        query_bnd, key_bsd, value_bsd = self.qkv(tokens_bnd).chunk(3, dim=-1)
        if self.extra_key:
            key_bsd = torch.cat([key_bsd, self.key.expand(batch, 1, -1)], dim=1)
            value_bsd = torch.cat([value_bsd, self.value.expand(batch, 1, -1)], dim=1)
        mixed = F.scaled_dot_product_attention(
            *(
                states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for states in (query_bnd, key_bsd, value_bsd)
            )
        )
        mixed_bnd: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return mixed_bnd


class Block(nn.Module):
    """A pre-norm transformer layer (Dosovitskiy et al. 2021, eqs. 2 and 3)."""

    def __init__(self, attention: Attention, width: int, mlp_width: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.Sequential(linear(width, mlp_width), nn.GELU(), linear(mlp_width, width))

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Return tokens (b, n, d)."""
        tokens_bnd = tokens_bnd + self.attention(self.norm1(tokens_bnd))
        out_bnd: Tensor = tokens_bnd + self.mlp(self.norm2(tokens_bnd))
        return out_bnd


def linear(width_in: int, width_out: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with small normal weights and zero bias."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
