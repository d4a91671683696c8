"""Continuous integrate-and-fire (Dong & Xu 2020, arXiv:1905.11250): frames to word vectors.

Every frame has a weight between 0 and 1. Weights are accumulated over time; whenever the sum passes
an integer, the weighted states since the last one are emitted ("fire") as one vector, and the
weight of the frame at the boundary is split between both sides (§2.2).

Shapes: b clips, t frames, d width, k fired vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.encoders.blocks import linear

TAIL = 0.5
"""The remainder at the end also fires if its weight exceeds this (§2.4)."""
EPSILON = 1e-8


class FrameWeights(nn.Module):
    """The weight of each frame: a convolution, a linear layer, a sigmoid (eq. 1)."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        nn.init.xavier_normal_(self.convolution.weight)
        self.linear = linear(width, 1)

    def forward(self, states_btd: Tensor) -> Tensor:
        """Return weights (b, t) in float32: sums of many would lose whole words in bfloat16."""
        context_btd = self.convolution(states_btd.transpose(1, 2)).transpose(1, 2)
        weights_bt: Tensor = self.linear(context_btd)[..., 0].float().sigmoid()
        return weights_bt


def integrate_and_fire(states_btd: Tensor, weights_bt: Tensor, tokens: int | None = None) -> Tensor:
    """Return the fired vectors (b, k, d).

    Args:
        states_btd: frames.
        weights_bt: of the frames, 0 for padding.
        tokens: number of vectors per clip, to which the weights are scaled (the scaling strategy,
            eq. 4). None for the number that follows from the weights, with the tail; k is then the
            maximum over the clips, and the others are padded with zero vectors.
    """
    if tokens is not None:
        total_b1 = weights_bt.sum(1, keepdim=True).clamp_min(EPSILON)
        return (fired_shares(weights_bt * tokens / total_b1, tokens).to(states_btd)) @ states_btd
    total_b = weights_bt.sum(1)
    share_bkt = fired_shares(weights_bt, int(total_b.max().floor()) + 1)
    # A complete vector weighs 1 up to rounding; the last row of a clip is its tail.
    weight_bk1 = share_bkt.sum(2, keepdim=True)
    share_bkt = torch.where(weight_bk1 > TAIL, share_bkt / weight_bk1.clamp_min(EPSILON), 0)
    fired_bkd = share_bkt.to(states_btd) @ states_btd
    return fired_bkd[:, : int((weight_bk1 > TAIL).sum(1).max())]


def fired_shares(weights_bt: Tensor, tokens: int) -> Tensor:
    """Return the share of each frame's weight in each vector, (b, tokens, t).

    Frame t covers the interval of the cumulative sum that its weight adds, vector k the interval
    from k to k + 1. The share is their overlap, which needs no loop over frames.
    """
    end_b1t = weights_bt.cumsum(1)[:, None]
    begin_b1t = end_b1t - weights_bt[:, None]
    word_k1 = torch.arange(tokens, device=weights_bt.device, dtype=weights_bt.dtype)[:, None]
    return (torch.minimum(end_b1t, word_k1 + 1) - torch.maximum(begin_b1t, word_k1)).clamp_min(0)
