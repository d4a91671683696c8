"""A command that is asked to stop."""

from __future__ import annotations

import subprocess
import sys

# glibc calls what `on_exit` was given after Python has shut down: `raise` with the exit code as
# the signal's number, so the last thing that this process gets is the signal it ends with.
_SIGNALLED_ON_THE_WAY_OUT = """
import ctypes
import sys
from pipeline.signals import StopRequest

stop = StopRequest()
libc = ctypes.CDLL(None)
libc.on_exit(ctypes.cast(libc["raise"], ctypes.c_void_p), None)
sys.exit({number})
"""


def test_a_rank_on_its_way_out_keeps_its_exit_code_when_it_is_told_to_stop() -> None:
    for number in (15, 10):  # SIGTERM, SIGUSR1
        code = _SIGNALLED_ON_THE_WAY_OUT.format(number=number)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == number
