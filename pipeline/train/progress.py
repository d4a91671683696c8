"""How far a run is and how long it will take: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_WINDOW = 50
"""Steps over which the time left is reckoned: saves and slow data come in as they fell."""


class ProgressLine:
    """Tells of every step on a terminal, and of every so many in a log such as Slurm's.

    Args:
        name: of what runs.
        first: completed steps at the start.
        total: steps of the whole run.
        every: steps between lines where there is no terminal; the first and last step have one.
        console: where to; one that is quiet says nothing.
    """

    def __init__(self, name: str, *, first: int, total: int, every: int, console: Console) -> None:
        self._name, self._first, self._total, self._every = name, first, total, every
        self._console = console
        self._ended: deque[tuple[int, float]] = deque([(first, time.monotonic())], _WINDOW + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, completed=first, told="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, figures: Mapping[str, object]) -> None:
        """Tell of a completed step, given its figures as of `metrics.jsonl`."""
        step = int(_number(figures["step"]))
        self._ended.append((step, time.monotonic()))
        told = (
            f"loss {_number(figures['loss']):.4f}  "
            f"{_number(figures['tokens_per_second']):,.0f} tokens/s  {self.left()} left"
        )
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, told=told)
        elif step % self._every == 0 or step in (self._first + 1, self._total):
            line = f"{self._name}: step {step}/{self._total}  {told}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def left(self) -> str:
        """Return the time left as H:MM:SS, by the pace of the last steps."""
        (begun, since), (done, now) = self._ended[0], self._ended[-1]
        seconds = round((self._total - done) * (now - since) / max(1, done - begun))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
