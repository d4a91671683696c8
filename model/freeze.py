"""Trainable parameters: those that match a stage's patterns; all others are frozen."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from model.spec import SpecError


def set_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Make exactly the parameters trainable that match a pattern; return their names in order.

    Raises:
        SpecError: a pattern matches no parameter, which is always a mistake in a preset.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(f"trainable: the pattern {pattern!r} matches no parameter")
    trainable = {name for name in names for pattern in patterns if fnmatchcase(name, pattern)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return [name for name in names if name in trainable]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters and of all parameters."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, trainable in counts if trainable), sum(count for count, _ in counts)
