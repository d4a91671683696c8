"""What trains: a stage's patterns over parameter names, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from model.spec import SpecError


def set_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let exactly the parameters train that a pattern matches; return their names in order.

    Raises:
        SpecError: a pattern matches nothing, which always is a mistake in a preset.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(f"trainable: the pattern {pattern!r} matches no parameter")
    chosen = {name for name in names for pattern in patterns if fnmatchcase(name, pattern)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]
