"""Stop requests by signal."""

from __future__ import annotations

import subprocess
import sys

# glibc calls the `on_exit` function after Python has shut down: `raise`, with the exit code as the
# signal's number, so the process receives that signal at the very end.
_SIGNAL_AT_EXIT = """
import ctypes
import sys
from pipeline.signals import StopRequest

stop = StopRequest()
libc = ctypes.CDLL(None)
libc.on_exit(ctypes.cast(libc["raise"], ctypes.c_void_p), None)
sys.exit({number})
"""


def test_an_exiting_rank_keeps_its_exit_code_when_a_stop_signal_arrives() -> None:
    for number in (15, 10):  # SIGTERM, SIGUSR1
        code = _SIGNAL_AT_EXIT.format(number=number)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == number
