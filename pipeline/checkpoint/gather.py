"""Whole parameters from the parts that ZeRO-3 leaves on each rank."""

from __future__ import annotations

from collections.abc import Iterator

import deepspeed
from torch import Tensor, nn

_GATHERED = 50_000_000
"""Elements of parameters that are whole at a time while they are saved."""


def gathered(parameters: list[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Yield whole parameters one by one, on every rank; under ZeRO-3 each holds only a part.

    What is wanted of one must be copied before the next is asked for. They are gathered some at a
    time: adapters are many and small, and each collective takes its while.
    """
    for some in _by_size(parameters):
        divided = [parameter for _, parameter in some if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(divided, enabled=bool(divided)):
            for name, parameter in some:
                yield name, parameter.detach()


def _by_size(
    parameters: list[tuple[str, nn.Parameter]],
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Yield parameters in groups of at most `_GATHERED` elements, or of one that is larger."""
    group: list[tuple[str, nn.Parameter]] = []
    held = 0
    for name, parameter in parameters:
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        if group and held + size > _GATHERED:
            yield group
            group, held = [], 0
        group.append((name, parameter))
        held += size
    if group:
        yield group
