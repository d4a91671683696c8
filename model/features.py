"""Features of media, known or encoded: what stands between an encoder and what reads it.

A frozen encoder says the same of a medium every time. Who knows what it said hands on that.

Shapes: m media, x those of them that are encoded, f parts of a medium, n tokens of a part, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.batch import Media
from model.spec import InputBranchSpec

Keep = Callable[[str, Sequence[bytes], Tensor], None]
"""Is told the kind of media, their keys, and the features (x, f, n, d) that were made of them."""


def is_trainable(encoder: nn.Module) -> bool:
    """Return whether any weight of an encoder trains, so that its features change."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def media_features(
    slot: InputBranchSpec,
    encode: Callable[[Tensor], Tensor],
    media: Media | None,
    *,
    calls: bool,
    device: torch.device,
    keep: Keep | None = None,
) -> Tensor:
    """Return the features (m, f, n, d) of media; without media, those of one that stands for none.

    Args:
        slot: that the media go into.
        encode: the encoder, values (x, f, *shape) → features (x, f, n, d).
        media: of the slot's kind.
        calls: whether any rank calls the encoder in this pass. Under ZeRO-3 that is a collective;
            where nothing is left to encode, a blank medium is.
        device: of the model.
        keep: is told what was encoded of media that have keys.
    """

    def blank() -> Tensor:
        return encode(torch.zeros(1, slot.parts, *slot.encoder.shape, device=device))

    if media is None:
        return blank() if calls else torch.zeros(1, *slot.features, device=device)
    encoded_xfnd = None
    if len(media.input_values):
        encoded_xfnd = encode(media.input_values)
        if keep is not None and media.keys:
            keep(slot.modality, media.keys, encoded_xfnd.detach())
    elif calls:
        blank()
    return together(media.features, media.known_m, encoded_xfnd)


def together(known: Tensor | None, known_m: Tensor | None, made: Tensor | None) -> Tensor:
    """Return what was known and what was made as one, in the order of the media or texts.

    Args:
        known: of those that were; None if none was.
        known_m: which were.
        made: of the others; None if there are none.
    """
    if known is None or known_m is None:
        assert made is not None
        return made
    all_m = known.new_empty(len(known_m), *known.shape[1:])
    all_m[known_m] = known
    if made is not None:
        all_m[~known_m] = made
    return all_m
