"""The data mixture: how often the samples of each data folder come (`--mix`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from etl.cli import UserError


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The weights of the data folders; by default each sample comes once per epoch."""

    shares: Annotated[tuple[str, ...], arg(name="mix", prefix_name=False)] = ()
    """How often the samples of a data folder come in an epoch: FOLDER=2, FOLDER=0.5, or
    FOLDER=10% of all samples. A folder's path, or the last part of it."""
    temperature: Annotated[float, arg(name="mix-temperature", prefix_name=False)] = 1.0
    """1 samples in proportion to the folders' sizes; larger values even them out."""
    cap: Annotated[float | None, arg(name="mix-cap", prefix_name=False)] = None
    """The most times that a sample may come in an epoch."""

    def __post_init__(self) -> None:
        """Raise UserError for a temperature or a cap that is not positive."""
        if self.temperature <= 0:
            raise UserError(f"--mix-temperature {self.temperature}: want more than 0")
        if self.cap is not None and self.cap <= 0:
            raise UserError(f"--mix-cap {self.cap}: want more than 0")
