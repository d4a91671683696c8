"""The whole system on the digits toy world: `python -m pipeline.quickstart --output DIR`.

Serve → ETL → MM-PT → MM-IT (killed once, and resumed) → evaluation → report. Every step is a
command that a user could type; this module runs them one after the other.
"""

from __future__ import annotations

import json
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
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from etl.cli import UserError, parse
from etl.storage.atomic import write_json
from etl.storage.manifest import read_manifest
from pipeline.quickstart.report import print_summary, write_quickstart_report
from pipeline.run_folder.metrics_writer import read_metrics

log = logging.getLogger(__name__)

_MARKER = ".quickstart"
_CHECKPOINT_EVERY = 40


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the whole system once on the digits toy world; about ten minutes on two cores."""

    output: Path = Path("runs/quickstart")
    """Folder for everything; an earlier quickstart in it is removed."""
    captions: int = 6000
    """Pairs of image and caption for MM-PT."""
    dialogues: int = 6000
    """Dialogues about images for MM-IT."""
    questions: int = 1200
    """Questions about held-out handwriting."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One row of the final table; `seconds` is the wall time of the whole command."""

    name: str
    samples: int
    seconds: float
    loss_first: float | None = None
    loss_last: float | None = None


def run(args: Sequence[str]) -> None:
    """Run every step; raises UserError with the command if one fails."""
    options = parse(Options, prog="python -m pipeline.quickstart", args=args)
    started = time.monotonic()
    out = _empty_folder(options.output)
    with _serve_world(options, out) as world:
        stages = [
            _etl("laion", world / "laion.parquet", out / "captions"),
            _etl("instruct", world / "dialogues.json", out / "dialogues"),
            _etl("instruct", world / "questions.json", out / "questions"),
        ]
    stages.append(_train(options, "pt", out / "captions", out / "pt"))
    stages.append(
        _train(options, "sft", out / "dialogues", out / "sft", init_from=out / "pt", crash=True)
    )
    before = time.monotonic()
    _call(_pipeline("evaluate", "--run", out / "sft", "--data", out / "questions"))
    scores = json.loads((out / "sft" / "evaluation" / "scores.json").read_bytes())
    stages.append(
        StageSummary(
            name="evaluate", samples=scores["questions"], seconds=time.monotonic() - before
        )
    )
    summary = {
        "stages": [asdict(stage) for stage in stages],
        "accuracy": {
            "held_out": scores["accuracy"],
            "blind": scores["blind"],
            "chance": scores["chance"],
        },
        "seconds_total": time.monotonic() - started,
    }
    write_json(out / "summary.json", summary)
    write_quickstart_report(out, summary)
    print_summary(out, summary)


def _empty_folder(out: Path) -> Path:
    """Empty the output folder, but only if an earlier quickstart wrote it."""
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise UserError(f"{out}: not empty and not from a quickstart; name another --output")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    return out.resolve()


@contextmanager
def _serve_world(options: Options, out: Path) -> Iterator[Path]:
    """Serve the digits toy world on 127.0.0.1 while the ETL downloads from it."""
    folder = out / "world"
    command = _python("-m", "etl.digits", "--output", folder, "--serve", 0)
    for name in ("captions", "dialogues", "questions"):
        command += [f"--{name}", str(getattr(options, name))]
    with _running(command) as server:
        address = folder / "address"
        while not address.is_file():
            if server.poll() is not None:
                raise UserError(f"{shlex.join(command)}: exit code {server.returncode}")
            time.sleep(0.1)
        yield folder
        server.terminate()


def _etl(job: str, source: Path, output: Path) -> StageSummary:
    started = time.monotonic()
    script = Path(__file__).parents[2] / "etl" / f"{job}.py"
    options = ("--allow-private-addresses", "--executor", "ray")
    _call(_python(script, "--input", source, "--output", output, *options))
    return StageSummary(
        name=f"etl {output.name}",
        samples=read_manifest(output).rows,
        seconds=time.monotonic() - started,
    )


def _train(
    options: Options,
    stage: str,
    data: Path,
    output: Path,
    *,
    init_from: Path | None = None,
    crash: bool = False,
) -> StageSummary:
    """Train a stage under DeepSpeed; with `crash`, kill it after a checkpoint and resume."""
    started = time.monotonic()
    launcher = Path(sys.executable).with_name("deepspeed")
    # DeepSpeed's own port may be taken by another run on this machine.
    command = [
        *[str(launcher), "--num_accelerators", str(options.ranks), "--log_level", "warning"],
        *["--master_port", str(_free_port())],
        *["--module", "pipeline", stage, "digits", "--data", str(data), "--output", str(output)],
        *["--save-every", str(_CHECKPOINT_EVERY)],
    ]
    if init_from is not None:
        command += ["--init-from", str(init_from)]
    if crash:
        _kill_after_checkpoint(command, output)
    _call(command)
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


def _call(command: Sequence[str]) -> None:
    _show(command)
    code = subprocess.run(command, env=_environment(), check=False).returncode
    if code:
        raise UserError(f"{shlex.join(command)}: exit code {code}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _show(command: Sequence[str]) -> None:
    Console(stderr=True).print(f"\n$ {shlex.join(command)}", style="bold", soft_wrap=True)


def _python(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def _pipeline(*words: object) -> list[str]:
    return _python("-m", "pipeline", *words)


def _environment() -> Mapping[str, str]:
    """Return variables with which the launcher finds ninja, which compiles DeepSpeed's op."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
