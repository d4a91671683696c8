"""Ranks of a benchmark on this machine, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from etl.command import UserError

ROOT = Path(__file__).parents[1]


def run_ranks(number: int, words: Sequence[object]) -> None:
    """Run a module on several ranks; its cores are shared out among them.

    Args:
        number: of ranks.
        words: the module, and what it is told.

    Raises:
        UserError: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    shared |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=ROOT,
            env={
                **os.environ,
                **{name: str(value) for name, value in shared.items()},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            },
        )
        for rank in range(number)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise UserError(f"{words[0]}: a rank failed")
