"""Attention among packed samples: each sees itself alone, and nothing is computed between two.

Transformers keeps samples in one row apart where their positions begin anew. With kernels for
variable lengths (flash attention) that costs nothing; with PyTorch's own kernel it fills a mask of
all positions by all positions, most of which says no. So where there are no such kernels, samples
go to PyTorch's kernel one after the other, through transformers' interface for attention functions.

Shapes: b sequences (1 where samples are packed), h heads, t positions, c width of a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_SAMPLE = "sdpa_by_sample"
"""Name of the attention function below."""


def attend_by_sample(
    module: nn.Module,
    query_bhtc: Tensor,
    key_bhtc: Tensor,
    value_bhtc: Tensor,
    attention_mask: Tensor | None,
    starts: tuple[int, ...] | None = None,
    **more: Any,  # noqa: ANN401 - whatever the backbone hands on
) -> tuple[Tensor, None]:
    """Return causal attention (b, t, h, c) within samples; without `starts`, just `sdpa`'s.

    Args:
        module: the layer's.
        query_bhtc: of all samples, one after the other.
        key_bhtc: likewise, perhaps of fewer heads.
        value_bhtc: likewise.
        attention_mask: as transformers makes it, for rows that are one sample.
        starts: where samples begin, and behind them the end.
        more: of `sdpa`.
    """
    if starts is None:
        attended_bthc, _ = sdpa_attention_forward(
            module, query_bhtc, key_bhtc, value_bhtc, attention_mask, **more
        )
        return attended_bthc, None
    parts = []
    for first, end in pairwise(starts):
        own = (states[:, :, first:end] for states in (query_bhtc, key_bhtc, value_bhtc))
        part_bthc, _ = sdpa_attention_forward(module, *own, None, **more)
        parts.append(part_bthc)
    return torch.cat(parts, dim=1), None


def attend_within_samples(backbone: PreTrainedModel) -> None:
    """Let a backbone attend by sample where it would else fill a mask, in place."""
    if backbone.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(BY_SAMPLE, attend_by_sample)
    AttentionMaskInterface.register(BY_SAMPLE, sdpa_mask)
    backbone.set_attn_implementation(BY_SAMPLE)


def arguments(backbone: PreTrainedModel, positions_bt: Tensor) -> dict[str, Any]:
    """Return what a decoder is to know of packed samples.

    Args:
        backbone: as `attend_within_samples` left it.
        positions_bt: of each token in its sample (1, t).
    """
    told: dict[str, Any] = {"position_ids": positions_bt, "attention_mask": None}
    if backbone.config._attn_implementation == BY_SAMPLE:
        firsts = (positions_bt[0] == 0).nonzero()[:, 0].tolist()
        told["starts"] = (*firsts, positions_bt.shape[1])
        # A mask of four dimensions is taken as it is: none is filled that nobody looks at.
        told["attention_mask"] = torch.ones(
            1, 1, 1, 1, dtype=torch.bool, device=positions_bt.device
        )
    return told
