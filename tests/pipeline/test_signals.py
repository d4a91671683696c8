"""Stop requests by signal, by Ctrl-C and by the end of the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.signals import stop_signals_blocked

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


# A rank: says when it is ready, and how it was asked to stop.
_RANK = """
import os, signal, sys, time
from pipeline.signals import StopRequest

stop = StopRequest()
print("ready", os.getpid(), flush=True)
while not stop.asked:
    time.sleep(0.01)
print("asked", flush=True)
if sys.argv[1:] == ["again"]:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        print("goes on", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""

# A launcher, by the name of its file: starts a rank and waits for it.
_LAUNCHER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=Path(__file__).parents[2])


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_ctrl_c_asks_to_stop_and_the_second_one_interrupts() -> None:
    with _start(sys.executable, "-c", _RANK, "again") as rank:
        assert _line(rank).startswith("ready")
        rank.send_signal(signal.SIGINT)
        out, error = rank.communicate()
    assert out.split() == ["asked", "interrupted"]
    assert error == "\nstopping after this step; Ctrl-C again stops at once\n"


def test_ctrl_c_is_ignored_in_the_background() -> None:
    """A shell starts `command &` with SIGINT ignored."""
    with _start("bash", "-c", f"trap '' INT; exec {sys.executable} -c '{_RANK}'") as rank:
        assert _line(rank).startswith("ready")
        rank.send_signal(signal.SIGINT)
        rank.send_signal(signal.SIGTERM)
        out, error = rank.communicate()
    assert (out, error) == ("asked\n", "")


@pytest.mark.parametrize("name", ["torchrun", "shell"])
def test_a_rank_whose_launcher_is_killed_is_asked_to_stop(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(_LAUNCHER)
    with _start(sys.executable, str(tmp_path / name), _RANK) as launcher:
        _, pid = _line(launcher).split()
        launcher.kill()
        if name == "torchrun":
            assert _line(launcher) == "asked"
        else:  # a shell may end while its background processes go on
            with pytest.raises(subprocess.TimeoutExpired):
                launcher.communicate(timeout=0.3)
            os.kill(int(pid), signal.SIGTERM)
            assert launcher.communicate()[0] == "asked\n"


def test_processes_that_are_started_get_no_stop_signals() -> None:
    with stop_signals_blocked():
        command = [sys.executable, "-c", "print(input())"]
        child = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        child.send_signal(number)
    assert child.communicate("still here")[0] == "still here\n"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not blocked & {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
