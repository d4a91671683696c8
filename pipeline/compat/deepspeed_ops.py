"""Load DeepSpeed's compiled ops so that a killed process cannot block later ones forever.

torch guards the compilation of an extension with a lock file, and waits while that file exists. A
process that is killed while it compiles leaves the file behind, and every later run on the machine
would hang. So ops are loaded under a lock that the system releases when its owner dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
from pathlib import Path

import deepspeed
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import _get_build_directory

log = logging.getLogger(__name__)


def load_op(builder_name: str) -> None:
    """Load an op, and compile it the first time, about a minute; DeepSpeed then finds it loaded.

    Args:
        builder_name: DeepSpeed's name of the op's builder, such as `ShareMemCommBuilder`. An op
            that this machine cannot build is left to DeepSpeed, which works without it or says why
            it cannot.
    """
    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible():
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "mmloom.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # While we hold this lock no process of ours compiles: torch's file is a dead process's.
        stale = folder / "lock"
        if stale.exists():
            log.warning("%s: left by a killed process; removed", stale)
            stale.unlink(missing_ok=True)
        builder.load()


def init_process_group() -> None:
    """Initialize DeepSpeed's process group without what it prints about ops to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        deepspeed.init_distributed(verbose=False)
    log.debug("%s", printed.getvalue().strip())
