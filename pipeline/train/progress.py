"""The progress of a run and the time left: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

log = logging.getLogger(__name__)

_WINDOW = 50
"""Steps over which the time left is estimated, saves and slow data included."""


class ProgressLine:
    """Shows every step on a terminal, and logs every `every` steps elsewhere (Slurm's output).

    Args:
        name: of the run.
        first: completed steps at the start.
        total: steps of the whole run.
        every: steps between log lines; the first and the last step are always logged.
        console: where the bar is shown; a quiet one shows and logs nothing.
    """

    def __init__(self, name: str, *, first: int, total: int, every: int, console: Console) -> None:
        self._name, self._first, self._total, self._every = name, first, total, every
        self._console = console
        self._times: deque[tuple[int, float]] = deque([(first, time.monotonic())], _WINDOW + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, completed=first, text="")

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

    def step(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Show or log a completed step."""
        self._times.append((step, time.monotonic()))
        text = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {self.time_left()} left"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, text=text)
        elif self._console.quiet:
            return
        elif step % self._every == 0 or step in (self._first + 1, self._total):
            log.info("%s: step %d/%d  %s", self._name, step, self._total, text)

    def time_left(self) -> str:
        """Return the time left as H:MM:SS, at the pace of the last steps."""
        (first, since), (last, now) = self._times[0], self._times[-1]
        seconds = round((self._total - last) * (now - since) / max(1, last - first))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"
