"""The data mixture: how often the samples of each data folder come (`--mix`)."""

from __future__ import annotations

from dataclasses import dataclass

from etl.cli import UserError


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The weights of the data folders; by default each sample comes once per epoch.

    Args:
        shares: entries NAME=TIMES or NAME=PERCENT%; a name is a data folder's path, or the last
            part of it.
        temperature: 1 samples in proportion to the sizes; larger values even them out.
        cap: the most times that a sample may come in an epoch.
    """

    shares: tuple[str, ...] = ()
    temperature: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a temperature or a cap that is not positive."""
        if self.temperature <= 0:
            raise UserError(f"--mix-temperature {self.temperature}: want more than 0")
        if self.cap is not None and self.cap <= 0:
            raise UserError(f"--mix-cap {self.cap}: want more than 0")
