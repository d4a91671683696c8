"""Features of media, cached or encoded now, as the projectors receive them.

A frozen encoder returns the same features for a medium every time, so they can be cached.

Shapes: m media, x those of them that are encoded, f segments of a medium, n tokens of a segment,
d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.batch import Media
from model.spec import InputBranchSpec

FeatureRecorder = Callable[[str, Sequence[bytes], Tensor], None]
"""Receives the kind of media, their cache keys, and their newly encoded features (x, f, n, d)."""


def is_trainable(encoder: nn.Module) -> bool:
    """Return whether any weight of an encoder is trainable, so that its features change."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def media_features(
    branch: InputBranchSpec,
    encode: Callable[[Tensor], Tensor],
    media: Media | None,
    *,
    must_encode: bool,
    device: torch.device,
    record_features: FeatureRecorder | None = None,
) -> Tensor:
    """Return the features (m, f, n, d) of media; without media, those of one dummy.

    Args:
        branch: the input branch of the media.
        encode: the encoder, values (x, f, *shape) → features (x, f, n, d).
        media: of the branch's kind.
        must_encode: whether any rank calls the encoder in this forward pass. Under ZeRO-3 the call
            is a collective; a rank with nothing to encode then encodes a dummy.
        device: of the model.
        record_features: receives the newly encoded features of media that have cache keys.
    """

    def encode_dummy() -> Tensor:
        return encode(torch.zeros(1, branch.segments, *branch.encoder.shape, device=device))

    if media is None:
        if must_encode:
            return encode_dummy()
        return torch.zeros(1, *branch.feature_shape, device=device)
    encoded_xfnd = None
    if len(media.input_values):
        encoded_xfnd = encode(media.input_values)
        if record_features is not None and media.keys:
            record_features(branch.modality, media.keys, encoded_xfnd.detach())
    elif must_encode:
        encode_dummy()
    return merge_cached(media.cached_features, media.cached_m, encoded_xfnd)


def merge_cached(cached: Tensor | None, cached_m: Tensor | None, encoded: Tensor | None) -> Tensor:
    """Return cached and newly encoded features in the order of the media or texts.

    Args:
        cached: the cached ones; None if there are none.
        cached_m: mask of the media or texts whose features are cached.
        encoded: those of the others; None if there are none.
    """
    if cached is None or cached_m is None:
        assert encoded is not None
        return encoded
    merged_m = cached.new_empty(len(cached_m), *cached.shape[1:])
    merged_m[cached_m] = cached
    if encoded is not None:
        merged_m[~cached_m] = encoded
    return merged_m
