"""Stop requests: by a signal, by Ctrl-C, or by the end of the launcher."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from etl.storage.processes import Process, command_line, find_process

STOPPED = 75
"""Exit code of a command that was asked to stop and saved: the shell's EX_TEMPFAIL, "try again"."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LAUNCHERS = frozenset(
    {
        "deepspeed",
        "deepspeed.launcher.launch",
        "deepspeed.launcher.runner",
        "torchrun",
        "torch.distributed.launch",
        "torch.distributed.run",
    }
)


class StopRequest:
    """Remembers that a stop was requested; loops check `asked` at every step.

    Requests are SIGTERM, SIGUSR1, SIGINT (Ctrl-C; the second one interrupts at once), and the end
    of a launcher: a signal that only the launcher gets may end it and leave its ranks behind.

    Created first, so that no early signal is lost, and kept until the process ends: when the first
    rank has exited, a launcher may send SIGTERM to the ranks that are still exiting.
    """

    def __init__(self) -> None:
        self._asked = self._interrupted = False
        self._launchers = list(_launchers())
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN and number == signal.SIGINT:
                continue  # of a background process: Ctrl-C is for another one
            signal.signal(number, self._remember)
            # During shutdown Python restores the default action of a handled signal, which kills
            # the process; an ignored signal stays ignored.
            atexit.register(signal.signal, number, signal.SIG_IGN)

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        if not self._asked:
            self._asked = any(find_process(each.pid) != each for each in self._launchers)
        return self._asked

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        self._asked = True


def _launchers() -> Iterator[Process]:
    """Yield the launchers that started this process: its parent, and the launcher's parents."""
    parent = find_process(os.getppid())
    while parent is not None:
        names = {Path(word).name for word in command_line(parent.pid)[:4]}
        if not names & _LAUNCHERS:
            return
        yield parent
        parent = find_process(parent.parent)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes that get no stop signals, which are for the process that started them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
