"""Features of media as the projectors receive them: encoded now, or given by the batch.

A frozen encoder returns the same features for a medium every time, so that a batch may hold
features instead of pixels.

Shapes: m media, f segments of a medium, n tokens of a segment, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.batch import Media
from model.spec import InputBranchSpec


def is_trainable(encoder: nn.Module) -> bool:
    """Return whether any weight of an encoder is trainable, so that its features change."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def media_features(
    branch: InputBranchSpec,
    encode: Callable[[Tensor], Tensor],
    media: Media | None,
    *,
    given: bool,
    device: torch.device,
) -> Tensor:
    """Return the features (m, f, n, d) of media; without media, those of one dummy.

    Under ZeRO-3 calling the encoder is a collective: every rank calls it once, or with given
    features none does.

    Args:
        branch: the input branch of the media.
        encode: the encoder, values (m, f, *shape) → features (m, f, n, d).
        media: of the branch's kind.
        given: whether batches give features of this kind instead of input values.
        device: of the model.
    """
    if given:
        if media is None:
            return torch.zeros(1, *branch.feature_shape, device=device)
        assert media.features is not None
        return media.features
    if media is None:
        return encode(torch.zeros(1, branch.segments, *branch.encoder.shape, device=device))
    assert media.input_values is not None
    return encode(media.input_values)
