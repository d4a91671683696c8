"""Pass fusion arguments to a decoder during generation.

Transformers' `generate` accepts no additional decoder arguments; it calls the decoder first with
the prompt and then token by token.

Shapes: b sequences, t positions of the prompt, s positions of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def inject_decoder_kwargs(decoder: nn.Module, kwargs: Mapping[str, Tensor]) -> Iterator[None]:
    """Add arguments to every call of a decoder, sliced or extended to the call's positions.

    Args:
        decoder: `backbone.get_decoder()`.
        kwargs: the decoder's arguments for the whole prompt. `media_index`, `vision_mask` and
            `position_ids` are (b, t) and extended beyond the prompt: new tokens see the last
            medium, are no media tokens, and have consecutive positions. All others are passed
            unchanged. In beam search, rows are repeated.
    """

    def add(
        _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        past = options.get("past_key_values")
        start = 0 if past is None else past.get_seq_length()
        embeds = options.get("inputs_embeds")
        inputs = embeds if embeds is not None else args[0] if args else options["input_ids"]
        rows, length = inputs.shape[:2]
        added = {
            name: extend(name, tensor, start + length)[:, start:] if name in _EXTENDED else tensor
            for name, tensor in kwargs.items()
        }
        return args, options | {
            name: tensor.repeat_interleave(rows // len(tensor), dim=0)
            for name, tensor in added.items()
        }

    handle = decoder.register_forward_pre_hook(add, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


_EXTENDED = ("media_index", "vision_mask", "position_ids")


def extend(name: str, prompt_bt: Tensor, length: int) -> Tensor:
    """Return an argument (b, length): the prompt's values and those of the generated tokens."""
    steps = torch.arange(1, length - prompt_bt.shape[1] + 1, device=prompt_bt.device)
    generated = {
        "media_index": prompt_bt[:, -1:].expand(-1, len(steps)),
        "vision_mask": torch.zeros_like(prompt_bt[:, -1:]).expand(-1, len(steps)),
        "position_ids": prompt_bt[:, -1:] + steps,
    }[name]
    return torch.cat([prompt_bt, generated], dim=1)
