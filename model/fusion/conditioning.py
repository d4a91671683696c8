"""Hand a decoder what its layers are to know of the media while it generates.

`generate` of transformers takes no arguments of ours and hands nothing on to the decoder, which it
calls first with the prompt and then token by token.

Shapes: b sequences, t positions of the prompt, s positions of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def conditioned(decoder: nn.Module, extra: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a decoder the prompt's arguments in every call, cut or grown to the call's positions.

    Args:
        decoder: `backbone.get_decoder()`.
        extra: what the decoder would get beside a whole prompt. `media_index`, `vision_mask` and
            `position_ids` are (b, t); behind the prompt a token sees the last medium, is no
            picture, and has the next position. All else is the same in every call. In a beam
            search, rows are repeated.
    """

    def add(
        _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        past = options.get("past_key_values")
        start = 0 if past is None else past.get_seq_length()
        given = options.get("inputs_embeds")
        ids = given if given is not None else args[0] if args else options["input_ids"]
        rows, length = ids.shape[:2]
        mine = {
            name: grow(name, tensor, start + length)[:, start:] if name in _BEHIND else tensor
            for name, tensor in extra.items()
        }
        return args, options | {
            name: tensor.repeat_interleave(rows // len(tensor), dim=0)
            for name, tensor in mine.items()
        }

    handle = decoder.register_forward_pre_hook(add, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


_BEHIND = ("media_index", "vision_mask", "position_ids")


def grow(name: str, given_bt: Tensor, length: int) -> Tensor:
    """Return (b, length): the prompt's values and those of the text behind it."""
    steps = torch.arange(1, length - given_bt.shape[1] + 1, device=given_bt.device)
    behind = {
        "media_index": given_bt[:, -1:].expand(-1, len(steps)),
        "vision_mask": torch.zeros_like(given_bt[:, -1:]).expand(-1, len(steps)),
        "position_ids": given_bt[:, -1:] + steps,
    }[name]
    return torch.cat([given_bt, behind], dim=1)
