"""The loggers that a run can report to, and whether their libraries are installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from etl.cli import UserError

LoggerName = Literal["tensorboard", "wandb"]


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError if the library of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"--log-to {name}: not installed; pip install mmloom[{name}]")
