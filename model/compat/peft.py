"""What peft lets one do under private names only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def active_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Compute with the adapter of that name in every adapted layer, while the context lasts.

    peft's `set_adapter` also changes which weights require a gradient, on which DeepSpeed has
    relied since it was initialized.
    """
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 -- imports packages few stages need

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer._active_adapter = own
