"""Start the ranks of a benchmark on this machine, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from etl.cli import UserError

ROOT = Path(__file__).parents[1]

Words = Sequence[object]
"""A module and its arguments."""


def run_ranks(number: int, words: Words) -> None:
    """Run a module on several ranks.

    Raises:
        UserError: a rank failed.
    """
    run_worlds([words], ranks=number)


def run_worlds(worlds: Sequence[Words], *, ranks: int) -> None:
    """Run several modules at the same time, each on `ranks` ranks, sharing the machine's cores.

    Raises:
        UserError: a rank failed.
    """
    processes = len(worlds) * ranks
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"OMP_NUM_THREADS": threads, "PATH": path}
    started = []
    for words in worlds:
        shared["MASTER_PORT"] = _free_port()
        for rank in range(ranks):
            own = {name: str(value) for name, value in shared.items()}
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", *map(str, words)]
            started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}))
    codes = [process.wait() for process in started]
    if any(codes):
        raise UserError(f"{worlds[0][0]}: a rank failed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
