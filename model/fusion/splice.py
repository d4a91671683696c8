"""Splice projected media into token embeddings: the input of the LLM, (P_X, F_T) of survey eq. 2.

Shapes: b sequences, t positions, d width, k positions of one kind of media.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FusionError(ValueError):
    """Media and the positions reserved for them do not match."""


def splice(
    embeddings_btd: Tensor, projected_kd: Mapping[str, Tensor], media_mask_bt: Mapping[str, Tensor]
) -> Tensor:
    """Replace the embeddings where a kind's mask is true by its projected tokens, in order.

    Args:
        embeddings_btd: token embeddings; those at the media's positions are ignored.
        projected_kd: per kind, the projected tokens of all its media, concatenated.
        media_mask_bt: per kind, a boolean mask of its positions.

    Returns:
        New embeddings of the same shape; the arguments are not modified.

    Raises:
        FusionError: a kind without a mask or media, a wrong number of tokens, a wrong width, or a
            position claimed by two kinds.
    """
    if projected_kd.keys() != media_mask_bt.keys():
        raise FusionError(f"media of {sorted(projected_kd)}, positions of {sorted(media_mask_bt)}")
    fused_btd = embeddings_btd
    taken_bt = torch.zeros(embeddings_btd.shape[:2], dtype=torch.bool, device=embeddings_btd.device)
    for kind, tokens_kd in projected_kd.items():
        mask_bt = media_mask_bt[kind]
        if mask_bt.shape != taken_bt.shape:
            raise FusionError(
                f"{kind}: mask {tuple(mask_bt.shape)}, must be {tuple(taken_bt.shape)}"
            )
        positions = int(mask_bt.sum())
        if tokens_kd.shape != (positions, embeddings_btd.shape[-1]):
            raise FusionError(
                f"{kind}: projected tokens {tuple(tokens_kd.shape)}, "
                f"must be {(positions, embeddings_btd.shape[-1])}"
            )
        if bool((taken_bt & mask_bt).any()):
            raise FusionError(f"{kind}: a position is claimed by two kinds of media")
        taken_bt = taken_bt | mask_bt
        fused_btd = fused_btd.masked_scatter(mask_bt[..., None], tokens_kd.to(fused_btd.dtype))
    return fused_btd
