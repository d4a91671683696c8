"""Features of media, known or encoded: what stands between an encoder and what reads it.

A frozen encoder says the same of a medium every time. Who knows what it said hands on that.

Shapes: m media, x those of them that are encoded, f parts of a medium, n tokens of a part, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.batch import Media
from model.spec import InputSlot

Keep = Callable[[str, Sequence[bytes], Tensor], None]
"""Is told the kind of media, their keys, and the features (x, f, n, d) that were made of them."""


def trains(encoder: nn.Module) -> bool:
    """Return whether any weight of an encoder trains, so that its features change."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def media_features(
    slot: InputSlot,
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
    if len(media.values):
        encoded_xfnd = encode(media.values)
        if keep is not None and media.keys:
            keep(slot.modality, media.keys, encoded_xfnd.detach())
    elif calls:
        blank()
    if media.features is None or media.known_m is None:
        assert encoded_xfnd is not None
        return encoded_xfnd
    features_mfnd = media.features.new_empty(len(media.known_m), *media.features.shape[1:])
    features_mfnd[media.known_m] = media.features
    if encoded_xfnd is not None:
        features_mfnd[~media.known_m] = encoded_xfnd
    return features_mfnd
