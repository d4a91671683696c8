"""The options of every command whose model answers: how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from etl.cli import UserError
from model.sampling import Sampling
from model.spec.base import FieldError


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Sampling):
    """The settings of sampling, as options.

    Raises:
        UserError: a value out of its range.
    """

    def __post_init__(self) -> None:
        """Raise UserError for a value out of its range."""
        try:
            super().__post_init__()
        except FieldError as error:
            raise UserError(f"--{error.field.replace('_', '-')}: {error.reason}") from None
