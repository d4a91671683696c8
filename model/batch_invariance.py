"""Results on the CPU that do not depend, to the last bit, on what else is in a batch.

Which kernel computes a matrix product of few rows, or a convolution, depends on their number, and
another kernel adds in another order. The last bits then differ, and with them bytes of pictures.
Here matrix products have a least number of rows, and convolutions at least two media; those for
which oneDNN has kernels for small and for large batches get two media at a time: classifier-free
guidance has as many for each. It holds for one thread; several divide the work by its size.

Padding a matrix product of one row to the least number costs two to three times the product. Where
a module decodes for long, its linear layers can be packed instead: oneDNN's product with a packed
weight adds in the same order for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.compat.torch import can_be_packed, pack_weight, packed_linear

_BYTES = 64
"""At a multiple of which weights begin that PyTorch has allocated."""
ALIGNED = 16
"""Prompts are padded to a multiple of so many tokens: sums over tokens in vector registers then add
the same tokens together, whatever the padding before them."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_ROWS = 4
"""Matrix products of at least so many rows all add in the same order."""
_PACKED = 1 << 16
"""Smallest weight that is packed: oneDNN takes longer to begin than products with a smaller one."""


def align_weights(module: nn.Module) -> None:
    """Move weights on the CPU that were read from a file, where they begin at any byte.

    The last bits of matrix products depend on that.
    """
    for weight in (*module.parameters(), *module.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % _BYTES:
            weight.data = weight.data.clone()


@contextmanager
def batch_invariant(module: nn.Module, *, packed: bool = False) -> Iterator[None]:
    """Make a module's layers invariant to the batch, on the CPU, for the duration of the block.

    On other devices nothing is changed: there last bits may depend on the batch.

    Args:
        module: for inference alone where it is packed.
        packed: pack the weights of linear layers, each when it is first used, which takes as much
            memory again. A weight may be exchanged for another one meanwhile, but not freed.
    """
    changed: list[nn.Module] = []
    if next(module.parameters()).device.type == "cpu":
        for layer in module.modules():
            invariant = _invariant(layer, packed)
            if invariant is not None:
                changed.append(layer)
                layer.forward = partial(invariant, layer.forward)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _invariant(layer: nn.Module, packed: bool) -> Callable[..., Tensor] | None:
    """Return what is called in place of a layer's `forward`, with that as its first argument."""
    if isinstance(layer, nn.Linear):
        large = layer.weight.numel() >= _PACKED  # an adapter's are not
        return _packed(layer) if packed and large and can_be_packed(layer.weight) else _linear
    if isinstance(layer, nn.GroupNorm):
        return _normalise
    if isinstance(layer, nn.Conv3d) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    ):
        return _in_pairs
    if isinstance(layer, _CONVOLUTIONS):
        return _at_least_two
    return None


def _linear(forward: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    count = rows.shape[:-1].numel()
    if not 0 < count < _ROWS:
        return forward(rows)
    flat = F.pad(rows.reshape(count, -1), (0, 0, 0, _ROWS - count))
    return forward(flat)[:count].unflatten(0, rows.shape[:-1])


def _packed(layer: nn.Linear) -> Callable[..., Tensor]:
    by_address: dict[int, Tensor] = {}  # several where adapters take turns in a layer

    def linear(_: Callable[..., Tensor], rows: Tensor) -> Tensor:
        address = layer.weight.data_ptr()
        if address not in by_address:
            by_address[address] = pack_weight(layer.weight)
        return packed_linear(rows, by_address[address], layer.bias)

    return linear


def _at_least_two(forward: Callable[..., Tensor], media: Tensor, *args: object) -> Tensor:
    if len(media) != 1:
        return forward(media, *args)
    return forward(torch.cat([media, torch.zeros_like(media)]), *args)[:1]


def _in_pairs(forward: Callable[[Tensor], Tensor], media: Tensor) -> Tensor:
    count = len(media)
    if count % 2:
        media = torch.cat([media, torch.zeros_like(media[:1])])
    return torch.cat([forward(pair) for pair in media.split(2)])[:count]


def _normalise(forward: Callable[[Tensor], Tensor], media: Tensor) -> Tensor:
    last = torch.channels_last
    if len(media) == 1 and media.ndim == 4 and media.is_contiguous(memory_format=last):
        # Else PyTorch does not see that a single medium has its channels last.
        media = media if media.is_contiguous() else media.clone(memory_format=last)
    return forward(media)
