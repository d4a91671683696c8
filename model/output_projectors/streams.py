"""The streams of a condition: the sequences that a generator's UNet attends to.

Shapes: g media, l and w tokens and width of a condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def join_streams(streams: Sequence[Tensor]) -> Tensor:
    """Return a condition (g, l, w) of its streams, each (g, tokens, width).

    One stream is the condition; of several, the condition is one row (g, 1, l · w + …).
    """
    if len(streams) == 1:
        return streams[0]
    return torch.cat([stream.flatten(1) for stream in streams], dim=1)[:, None]


def split_streams(condition_glw: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Return the streams, of these tokens and widths, of a condition: undoes `join_streams`."""
    if len(shapes) == 1:
        return (condition_glw,)
    rows = condition_glw[:, 0].split([tokens * width for tokens, width in shapes], dim=1)
    return tuple(row.unflatten(1, shape) for row, shape in zip(rows, shapes, strict=True))
