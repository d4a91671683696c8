"""RUN/starts.jsonl: when, where and how a run was started, and how each start ended.

A start is one line: its time, rank 0's host, the number of ranks, the command, the code, the step
after which it resumed, the numbers of trainable and of all parameters, and its lineage: the
fingerprint of the data, the weights that the run began from, and the settings that a later start
may change. Its end is another line:
the time, the last step and the outcome. A killed start has no end, but the next one writes down how
far it found the run.
"""

from __future__ import annotations

import json
import logging
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.config.run_config import REPOSITORY
from pipeline.run_folder.metrics_writer import METRICS, append_all, last_step, whole_lines

log = logging.getLogger(__name__)

_FILE = "starts.jsonl"


def record_start(
    run: Path,
    *,
    ranks: int,
    from_step: int,
    parameters: tuple[int, int],
    lineage: Mapping[str, object],
) -> None:
    """Write down a start, before the metrics after `from_step` are removed.

    Args:
        run: the run folder.
        ranks: their number.
        from_step: the step after which the run resumes; 0 for none.
        parameters: how many are trainable, and how many there are.
        lineage: what the start was made of, see `pipeline.train.identity.start_lineage`.
    """
    program, *words = sys.orig_argv
    words = [word for word in words if not word.startswith("--local_rank=")]
    metrics = run / METRICS
    start = {
        "started": time.time(),
        "host": socket.gethostname(),
        "ranks": ranks,
        "command": shlex.join([Path(program).name, *words]),
        "code": _code(),
        "from_step": from_step,
        "parameters": parameters,
        **lineage,
        "found": {
            "to_step": last_step(run),
            "ended": metrics.stat().st_mtime if metrics.is_file() else None,
        },
    }
    _append(run, start)


def record_end(run: Path, outcome: str) -> None:
    """Write down how the last start ended, at the last step of the metrics."""
    _append(run, {"ended": time.time(), "to_step": last_step(run), "outcome": outcome})


@contextmanager
def recording_failure(run: Path, rank: int) -> Iterator[None]:
    """Write down an exception as the end of the start, and let it pass."""
    try:
        yield
    except BaseException as error:
        if rank == 0:
            record_end(run, f"{type(error).__name__}: {error}")
        raise


def read_starts(run: Path) -> list[dict[str, Any]]:
    """Return all starts of a run, the first one first, each with its end."""
    starts: list[dict[str, Any]] = []
    for entry in map(json.loads, whole_lines(run / _FILE)):
        if "outcome" not in entry:
            if starts and starts[-1]["ended"] is None:
                starts[-1] |= _found(starts[-1], **entry["found"])
            starts.append(entry | {"ended": None, "to_step": None, "outcome": "running, or killed"})
        elif starts:  # a full disk may have kept the start from being written
            starts[-1] |= entry
    return starts


def _found(start: Mapping[str, Any], to_step: int, ended: float | None) -> dict[str, Any]:
    """Return the end of a start that has recorded none."""
    if to_step <= start["from_step"]:
        return {"outcome": "ended before a step was complete"}
    return {"to_step": to_step, "ended": ended, "outcome": "killed"}


def _append(run: Path, entry: Mapping[str, object]) -> None:
    try:
        append_all(run / _FILE, f"{json.dumps(entry)}\n".encode())
    except OSError as error:  # a full disk is no reason not to train
        log.warning("%s: %s", run / _FILE, error.strerror)


def _code() -> str:
    """Return the commit of the checkout, else the version of the package."""
    if (REPOSITORY / ".git").exists():
        command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--tags"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            return f"commit {found.stdout.strip()}"
        except (OSError, subprocess.CalledProcessError) as error:
            log.info("no commit for the report: %s", error)
    try:
        return f"version {version('mmloom')}"
    except PackageNotFoundError:
        return "neither a checkout nor installed"
