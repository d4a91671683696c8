"""How data folders are mixed, as `--mix` and its companions say it."""

from __future__ import annotations

from dataclasses import dataclass

from etl.cli import UserError


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How sources are mixed; by default each row comes once an epoch.

    Args:
        shares: words of the form NAME=TIMES or NAME=PERCENT%; a name is a data folder's path, or
            its last part.
        temperature: 1 leaves the sizes as they are; larger ones even them out.
        cap: how often a row may come in an epoch; what is above it is left out.
    """

    shares: tuple[str, ...] = ()
    temperature: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError for figures that mean nothing."""
        if self.temperature <= 0:
            raise UserError(f"--mix-temperature {self.temperature}: want more than 0")
        if self.cap is not None and self.cap <= 0:
            raise UserError(f"--mix-cap {self.cap}: want more than 0")
