"""Keys and values of requests that are decoded together, each in a slot of its own.

Every request begins at position 0 of its slot, wherever the others are: it may join while others
are in the middle of their answers, nothing is moved when one leaves, and what a request attends to
has the same alignment in memory in any company, so that its sums have the same last bits.

Shapes: n requests, h heads of keys and values, s positions, c width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from model.batch_invariance import ALIGNED

_GROWTH = 128
"""Slots are lengthened by multiples of so many positions: each time their content is copied."""


class _SlotLayer(DynamicLayer):
    """One layer's keys and values; transformers calls it as a layer of its own caches."""

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self._slots = slots

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401 -- transformers' signature
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values (n, h, 1, c) of one token per request; return all (n, h, s, c).

        What is behind a request's last token is finite, and masked.
        """
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        count, length = len(key_states), self._slots.visible
        row_n, position_n = self._slots.next_n
        keys[row_n, :, position_n] = key_states[:, :, 0]
        values[row_n, :, position_n] = value_states[:, :, 0]
        return keys[:count, :, :length], values[:count, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return number and offset of the visible positions."""
        return self._slots.visible, 0

    def get_seq_length(self) -> int:
        """Return the last visible position: causality hides none, the attention mask does."""
        return self._slots.visible - 1


class SlotCache(Cache):
    """A cache of transformers' interface with a slot per request, in the order of the requests.

    Args:
        layers: of the backbone.

    Attributes:
        lengths: tokens of each request so far.
        visible: positions that the current step attends to; those of longer slots are left out.
        next_n: slots and positions of the current step's tokens.
    """

    def __init__(self, layers: int) -> None:
        self._slot_layers = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=self._slot_layers)
        self.lengths: list[int] = []
        self.visible = 0
        self.next_n: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def add(self, prompt: DynamicCache, length: int) -> None:
        """Add a request after the others.

        Args:
            prompt: keys and values of its prompt alone; those behind it are not read.
            length: of the prompt.
        """
        count = len(self.lengths) + 1
        for own, given in zip(self._slot_layers, prompt.layers, strict=True):
            for name in ("keys", "values"):
                states_1hsc: Tensor = getattr(given, name)
                held: Tensor | None = getattr(own, name)
                held = _grown(held, states_1hsc, count, length)
                held[count - 1, :, :length] = states_1hsc[0, :, :length]
                setattr(own, name, held)
        self.lengths.append(length)

    def remove(self, index: int) -> None:
        """Remove a request; the last one takes its place."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        if index != last:
            for layer in self._slot_layers:
                for states in (layer.keys, layer.values):
                    assert states is not None
                    states[index, :, :length] = states[last, :, :length]
        self.lengths[index] = length
        self.lengths.pop()
        if not self.lengths:
            self.reset()

    def reset(self) -> None:
        """Remove all requests, and free their memory."""
        self.lengths.clear()
        for layer in self._slot_layers:
            layer.keys = layer.values = None

    def begin_step(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Prepare for one more token of each request; returns mask (n, s) and positions (n, 1)."""
        longest = max(self.lengths) + 1
        self.visible = -(-longest // ALIGNED) * ALIGNED
        for layer in self._slot_layers:
            for name in ("keys", "values"):
                held: Tensor = getattr(layer, name)
                setattr(layer, name, _grown(held, held, len(self.lengths), longest))
        position_n = torch.tensor(self.lengths, device=device)
        self.next_n = (torch.arange(len(position_n), device=device), position_n)
        mask_ns = torch.arange(self.visible, device=device) <= position_n[:, None]
        self.lengths = [length + 1 for length in self.lengths]
        return mask_ns, position_n[:, None]


def _grown(held: Tensor | None, like: Tensor, count: int, length: int) -> Tensor:
    """Return the slots of a layer, in larger memory if `count` requests of `length` need it."""
    if held is not None and len(held) >= count and held.shape[2] >= length:
        return held
    rows, positions = (0, 0) if held is None else (len(held), held.shape[2])
    rows = max(rows, 1 << (count - 1).bit_length())
    if positions < length:
        positions = -(-length // _GROWTH) * _GROWTH
    # Zeros, since a masked position is multiplied by 0 and must be finite.
    grown = like.new_zeros(rows, like.shape[1], positions, like.shape[3])
    if held is not None:
        grown[: len(held), :, : held.shape[2]] = held
    return grown
