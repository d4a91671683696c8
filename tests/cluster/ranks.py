"""Start real ranks of the pipeline on this machine, as a launcher would."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.warm import REPOSITORY, WarmProcess

TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def free_port() -> int:
    """Return a port on which nobody listens now.

    It lies below the range from which the kernel takes ports for outgoing connections, so that none
    takes it before the ranks do.
    """
    while True:
        port = secrets.choice(range(20000, 30000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Ranks:
    """The processes of one run; `wait` ends them all, whatever happens.

    Args:
        number: how many.
        words: the arguments of each.
        module: what they run, as with `python -m`.
        cold: whether each is a Python of its own, as users start them; else see `warm`.
    """

    def __init__(
        self,
        number: int,
        words: Sequence[object],
        *,
        module: str = "pipeline",
        cold: bool = False,
    ) -> None:
        common = {
            "WORLD_SIZE": number,
            "LOCAL_WORLD_SIZE": number,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "DS_ACCELERATOR": "cpu",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        start = _start_cold if cold else _start_warm
        self.processes = [
            start(rank, module, list(map(str, words)), {name: str(v) for name, v in common.items()})
            for rank in range(number)
        ]

    def wait(self, timeout: float = TIMEOUT_S) -> Outcome:
        """Return the worst exit code and rank 0's output; a rank that fails ends the others."""
        try:
            codes, texts = [], []
            for process in self.processes:
                texts.append(process.communicate(timeout=timeout))
                codes.append(process.returncode)
                if process.returncode:
                    self.kill()
            return Outcome(code=codes[0] or max(codes), stdout=texts[0][0], stderr=texts[0][1])
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()


def _start_cold(
    rank: int, module: str, words: list[str], common: dict[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def _start_warm(rank: int, module: str, words: list[str], common: dict[str, str]) -> WarmProcess:
    env = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    return WarmProcess(module, words, env, server=rank)


def run_ranks(number: int, *words: object, cold: bool = False) -> Outcome:
    return Ranks(number, words, cold=cold).wait()


def wait_for(path: Path, ranks: Ranks) -> None:
    """Wait until a file or folder exists, as long as the ranks live."""
    _wait(path.exists, ranks)


def wait_for_message(text: str, ranks: Ranks) -> None:
    """Wait until rank 0, a warm one, has written a text to stderr, as long as the ranks live."""
    first = ranks.processes[0]
    assert isinstance(first, WarmProcess)
    _wait(lambda: text in first.stderr_so_far(), ranks)


def _wait(happened: Callable[[], bool], ranks: Ranks) -> None:
    while not happened():
        try:
            ranks.processes[0].wait(timeout=0.005)  # what is awaited may not stay
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(ranks.wait().stderr)


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]
