"""How a command is asked to stop, and how it says that it can go on where it was."""

from __future__ import annotations

import atexit
import signal
from types import FrameType

STOPPED = 75
"""Exit code of a command that was asked to stop and saved: the shell's EX_TEMPFAIL, "try again"."""


class StopRequest:
    """Remembers that SIGTERM or SIGUSR1 came; loops ask for it at every step.

    Made first thing, so that no early request is lost, and kept to the end: when the first rank
    has ended, a launcher may send SIGTERM to those that are still on their way out.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)
            # While Python shuts down it gives a signal that has a handler its default back, which
            # kills; one that is ignored stays ignored.
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
