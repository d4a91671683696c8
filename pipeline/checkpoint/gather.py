"""Gather whole parameters from the partitions that ZeRO-3 leaves on each rank."""

from __future__ import annotations

from collections.abc import Iterator

import deepspeed
from torch import Tensor, nn

_MAX_GATHERED = 50_000_000
"""Elements of parameters that are gathered at a time."""


def gather_parameters(
    parameters: list[tuple[str, nn.Parameter]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield whole parameters one by one, on every rank; a collective under ZeRO-3.

    Each must be copied before the next is requested. They are gathered in groups: adapters are many
    and small, and every collective has a latency.
    """
    for group in _by_size(parameters):
        partitioned = [parameter for _, parameter in group if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            for name, parameter in group:
                yield name, parameter.detach()


def _by_size(
    parameters: list[tuple[str, nn.Parameter]],
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Yield groups of at most `_MAX_GATHERED` elements, or of one larger parameter."""
    group: list[tuple[str, nn.Parameter]] = []
    elements = 0
    for name, parameter in parameters:
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        if group and elements + size > _MAX_GATHERED:
            yield group
            group, elements = [], 0
        group.append((name, parameter))
        elements += size
    if group:
        yield group
