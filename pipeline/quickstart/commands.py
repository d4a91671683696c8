"""What the quickstarts share: every step is a command that a user could type."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from etl.cli import UserError
from etl.storage.manifest import read_manifest
from pipeline.run_folder.metrics_writer import read_metrics

log = logging.getLogger(__name__)

_MARKER = ".quickstart"
_CHECKPOINT_EVERY = 40


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One row of the final table; `seconds` is the wall time of the whole command."""

    name: str
    samples: int
    seconds: float
    loss_first: float | None = None
    loss_last: float | None = None


def empty_folder(out: Path) -> Path:
    """Empty the output folder, but only if an earlier quickstart wrote it."""
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise UserError(f"{out}: not empty and not from a quickstart; name another --output")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    return out.resolve()


@contextmanager
def serve_world(out: Path, sizes: Mapping[str, int]) -> Iterator[Path]:
    """Serve the digits toy world on 127.0.0.1 while the ETL downloads from it.

    Args:
        out: its folder becomes `out`/world.
        sizes: the command's options that say how much of each list there is.
    """
    folder = out / "world"
    command = python_command("-m", "etl.digits", "--output", folder, "--serve", 0)
    for name, size in sizes.items():
        command += [f"--{name}", str(size)]
    with _running(command) as server:
        address = folder / "address"
        while not address.is_file():
            if server.poll() is not None:
                raise UserError(f"{shlex.join(command)}: exit code {server.returncode}")
            time.sleep(0.1)
        yield folder
        server.terminate()


def run_etl(
    job: str, source: Path, output: Path, *extra: object, executor: str = "ray"
) -> StageSummary:
    """Run a job of the ETL."""
    started = time.monotonic()
    script = Path(__file__).parents[2] / "etl" / f"{job}.py"
    options = ("--allow-private-addresses", "--executor", executor, *extra)
    call(python_command(script, "--input", source, "--output", output, *options))
    return StageSummary(
        name=f"etl {output.name}",
        samples=read_manifest(output).rows,
        seconds=time.monotonic() - started,
    )


def train(
    stage: str,
    preset: str,
    data: Sequence[Path],
    output: Path,
    *,
    ranks: int,
    init_from: Path | None = None,
    crash: bool = False,
    save_every: int = _CHECKPOINT_EVERY,
    extra: Sequence[object] = (),
) -> StageSummary:
    """Train a stage under DeepSpeed; with `crash`, kill it after a checkpoint and resume."""
    started = time.monotonic()
    words = ["--output", output, "--save-every", save_every, *extra]
    command = deepspeed_command(ranks, stage, preset, "--data", *data, *words)
    if init_from is not None:
        command += ["--init-from", str(init_from)]
    if crash:
        _kill_after_checkpoint(command, output)
    call(command)
    metrics = read_metrics(output)
    return StageSummary(
        name=stage,
        samples=int(metrics[-1]["samples"]),
        seconds=time.monotonic() - started,
        loss_first=metrics[0]["loss"],
        loss_last=metrics[-1]["loss"],
    )


def _kill_after_checkpoint(command: Sequence[str], output: Path) -> None:
    """Start a run, and kill it with SIGKILL once it has a checkpoint."""
    with _running(command) as job:
        latest = output / "checkpoints" / "latest"
        while not latest.is_file():
            if job.poll() is not None:
                raise UserError(f"{shlex.join(command)}: exit code {job.returncode}")
            time.sleep(0.1)
        log.info("killing this run on purpose; the same command then resumes from %s", latest)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background, in a process group that ends with the block."""
    _show(command)
    with subprocess.Popen(command, env=_environment(), start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def call(command: Sequence[str], *, stdout: IO[str] | None = None) -> None:
    """Run a command; raises UserError with it if it fails.

    Whatever ends this process ends the command first, which may save its state.

    Args:
        command: and its arguments.
        stdout: what it prints to; by default where this process does.
    """
    _show(command)
    with subprocess.Popen(command, env=_environment(), stdout=stdout) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code:
        raise UserError(f"{shlex.join(command)}: exit code {code}")


def deepspeed_command(ranks: int, *words: object) -> list[str]:
    """Return a command of the pipeline for several ranks of this machine."""
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    # DeepSpeed's own port may be taken by another run on this machine.
    options = ["--num_accelerators", ranks, "--log_level", "warning", "--master_port", _free_port()]
    return [launcher, *map(str, [*options, "--module", "pipeline", *words])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _show(command: Sequence[str]) -> None:
    Console(stderr=True).print(f"\n$ {shlex.join(command)}", style="bold", soft_wrap=True)


def python_command(*words: object) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *map(str, words)]


def pipeline_command(*words: object) -> list[str]:
    """Return a command `python -m pipeline …`."""
    return python_command("-m", "pipeline", *words)


def _environment() -> Mapping[str, str]:
    """Return variables with which the launcher finds ninja, which compiles DeepSpeed's op."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
