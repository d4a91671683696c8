"""Processes of this machine by id and start time, since the system reuses ids. Linux only."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process: its id, its parent's, and its start in clock ticks since the machine's."""

    pid: int
    parent: int
    started: int


def find_process(pid: int) -> Process | None:
    """Return the running process with an id; None if there is none, or it has ended (zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the second field, the name in parentheses, may hold blanks and parentheses.
    state, parent, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else Process(pid, int(parent), int(fields[17]))


def command_line(pid: int) -> list[str]:
    """Return the words of a process's command line; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []
