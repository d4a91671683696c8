"""Results on the CPU that do not depend, to the last bit, on what else is in a batch.

Which kernel computes a matrix product of few rows, or a convolution, depends on their number, and
another kernel adds in another order. The last bits then differ, and with them bytes of pictures.
Here matrix products have a least number of rows, and convolutions always two media: classifier-free
guidance has as many for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 16
"""Prompts are padded to a multiple of so many tokens: sums over tokens in vector registers then add
the same tokens together, whatever the padding before them."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_ROWS = 4
"""Matrix products of at least so many rows all add in the same order."""


@contextmanager
def batch_invariant(module: nn.Module) -> Iterator[None]:
    """Make a module's layers invariant to the batch, on the CPU, for the duration of the block.

    On other devices nothing is changed: there last bits may depend on the batch.
    """
    changed: list[nn.Module] = []
    if next(module.parameters()).device.type == "cpu":
        for layer in module.modules():
            invariant = _invariant(layer)
            if invariant is not None:
                changed.append(layer)
                layer.forward = partial(invariant, layer.forward)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _invariant(layer: nn.Module) -> Callable[..., Tensor] | None:
    """Return what is called in place of a layer's `forward`, with that as its first argument."""
    if isinstance(layer, nn.Linear):
        return _linear
    if isinstance(layer, nn.GroupNorm):
        return _with_plain_strides
    if isinstance(layer, _CONVOLUTIONS):
        return _in_pairs
    return None


def _linear(forward: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    count = rows.shape[:-1].numel()
    if not 0 < count < _ROWS:
        return forward(rows)
    flat = F.pad(rows.reshape(count, -1), (0, 0, 0, _ROWS - count))
    return forward(flat)[:count].unflatten(0, rows.shape[:-1])


def _in_pairs(forward: Callable[..., Tensor], media: Tensor, *args: object) -> Tensor:
    count = len(media)
    if count % 2:
        media = torch.cat([media, torch.zeros_like(media[:1])])
    return torch.cat([forward(pair, *args) for pair in media.split(2)])[:count]


def _with_plain_strides(forward: Callable[[Tensor], Tensor], media: Tensor) -> Tensor:
    """Give a single medium with its channels last the strides that several have."""
    last = torch.channels_last
    if len(media) == 1 and media.ndim == 4 and media.is_contiguous(memory_format=last):
        media = media if media.is_contiguous() else media.clone(memory_format=last)
    return forward(media)
