"""Attention over packed samples: within each sample, and without computing anything between two.

Transformers separates packed samples where their position ids restart at 0. With variable-length
kernels (flash attention) that is free; with PyTorch's own kernel it materialises a mask of all
positions by all positions, most of which is False. Without such kernels, samples are therefore
passed to PyTorch's kernel one by one, through transformers' attention interface.

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

from model.compat.transformers import attention_implementation

BY_SAMPLE = "sdpa_by_sample"
"""Name under which `attend_by_sample` is registered with transformers."""


def attend_by_sample(
    module: nn.Module,
    query_bhtc: Tensor,
    key_bhtc: Tensor,
    value_bhtc: Tensor,
    attention_mask: Tensor | None,
    starts: tuple[int, ...] | None = None,
    **more: Any,  # noqa: ANN401 - the backbone's own arguments
) -> tuple[Tensor, None]:
    """Return causal attention (b, t, h, c) within samples; without `starts`, that of `sdpa`.

    Args:
        module: the attention layer.
        query_bhtc: of all samples, concatenated.
        key_bhtc: likewise, possibly with fewer heads.
        value_bhtc: likewise.
        attention_mask: transformers' mask, used for rows that are not packed.
        starts: first position of each sample, then the length of the sequence.
        more: arguments of `sdpa`, and of the layer its `sliding_window`, if it has one.
    """
    if starts is None:
        attended_bthc, _ = sdpa_attention_forward(
            module, query_bhtc, key_bhtc, value_bhtc, attention_mask, **more
        )
        return attended_bthc, None
    # The gradient of a slice is as long as the whole sequence, that of a split only as its part:
    # of many slices it would take time in proportion to the square of their number.
    lengths = [end - first for first, end in pairwise(starts)]
    states = (states.split(lengths, dim=2) for states in (query_bhtc, key_bhtc, value_bhtc))
    attended = []
    for length, sample in zip(lengths, zip(*states, strict=True), strict=True):
        mask = _window_mask(length, more.get("sliding_window"), query_bhtc.device)
        sample_bthc, _ = sdpa_attention_forward(module, *sample, mask, **more)
        attended.append(sample_bthc)
    return torch.cat(attended, dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask (1, 1, t, t) of sliding-window attention; None where it is just causal."""
    if window is None or length <= window:
        return None
    offset_tt = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((offset_tt >= 0) & (offset_tt < window))[None, None]


def attend_within_samples(backbone: PreTrainedModel) -> None:
    """Make a backbone with `sdpa` attention use `attend_by_sample`, in place."""
    if attention_implementation(backbone.config) != "sdpa":
        return
    AttentionInterface.register(BY_SAMPLE, attend_by_sample)
    AttentionMaskInterface.register(BY_SAMPLE, sdpa_mask)
    backbone.set_attn_implementation(BY_SAMPLE)


def decoder_kwargs(backbone: PreTrainedModel, positions_bt: Tensor) -> dict[str, Any]:
    """Return the decoder's keyword arguments for packed samples.

    Args:
        backbone: as modified by `attend_within_samples`.
        positions_bt: position of each token in its sample (1, t).
    """
    kwargs: dict[str, Any] = {"position_ids": positions_bt, "attention_mask": None}
    if attention_implementation(backbone.config) == BY_SAMPLE:
        firsts = (positions_bt[0] == 0).nonzero()[:, 0].tolist()
        kwargs["starts"] = (*firsts, positions_bt.shape[1])
        # Transformers passes four-dimensional masks through: a dummy avoids that it creates one.
        kwargs["attention_mask"] = torch.ones(
            1, 1, 1, 1, dtype=torch.bool, device=positions_bt.device
        )
    return kwargs
