"""Stop requests by signal, and the exit code of a command that stopped and can be resumed."""

from __future__ import annotations

import atexit
import signal
from types import FrameType

STOPPED = 75
"""Exit code of a command that was asked to stop and saved: the shell's EX_TEMPFAIL, "try again"."""


class StopRequest:
    """Remembers that SIGTERM or SIGUSR1 was received; loops check `asked` at every step.

    Created first, so that no early signal is lost, and kept until the process ends: when the first
    rank has exited, a launcher may send SIGTERM to the ranks that are still exiting.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)
            # During shutdown Python restores the default action of a handled signal, which kills
            # the process; an ignored signal stays ignored.
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
