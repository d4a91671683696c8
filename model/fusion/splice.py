"""Splice projected media into token embeddings: the input of the LLM, (P_X, F_T) of survey eq. 2.

Shapes: b sequences, t positions, d width, k positions of one kind of media.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FusionError(ValueError):
    """Media and the places kept for them do not match."""


def splice(
    embeddings_btd: Tensor, projected_kd: Mapping[str, Tensor], media_mask_bt: Mapping[str, Tensor]
) -> Tensor:
    """Put each kind's projected tokens, in reading order, where its mask is true.

    Args:
        embeddings_btd: token embeddings; what stands at the media's places is ignored.
        projected_kd: per kind, the projected tokens of all its media, one after the other.
        media_mask_bt: per kind, a boolean mask of the places kept for it.

    Returns:
        New embeddings of the same shape; the arguments stay as they are.

    Raises:
        FusionError: a kind without places or media, a wrong number of tokens or a wrong width,
            or a place claimed by two kinds.
    """
    if projected_kd.keys() != media_mask_bt.keys():
        raise FusionError(f"media of {sorted(projected_kd)}, places for {sorted(media_mask_bt)}")
    fused_btd = embeddings_btd
    taken_bt = torch.zeros(embeddings_btd.shape[:2], dtype=torch.bool, device=embeddings_btd.device)
    for kind, tokens_kd in projected_kd.items():
        mask_bt = media_mask_bt[kind]
        if mask_bt.shape != taken_bt.shape:
            raise FusionError(f"{kind}: mask {tuple(mask_bt.shape)}, want {tuple(taken_bt.shape)}")
        places = int(mask_bt.sum())
        if tokens_kd.shape != (places, embeddings_btd.shape[-1]):
            raise FusionError(
                f"{kind}: projected tokens {tuple(tokens_kd.shape)}, "
                f"want {(places, embeddings_btd.shape[-1])}"
            )
        if bool((taken_bt & mask_bt).any()):
            raise FusionError(f"{kind}: a place is claimed by two kinds of media")
        taken_bt = taken_bt | mask_bt
        fused_btd = fused_btd.masked_scatter(mask_bt[..., None], tokens_kd.to(fused_btd.dtype))
    return fused_btd
