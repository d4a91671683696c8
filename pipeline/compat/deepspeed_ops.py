"""DeepSpeed's compiled ops, loaded so that a killed process cannot make later ones wait for ever.

torch guards the compilation of an extension with a file, and whoever finds that file waits until
it is gone. A process killed at that moment leaves it behind; every later run on the machine would
hang. We therefore load ops under a lock that dies with its owner.
"""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import _get_build_directory

log = logging.getLogger(__name__)


def load_op(builder_name: str) -> None:
    """Compile (the first time, about a minute) and load an op; DeepSpeed then finds it loaded.

    Args:
        builder_name: DeepSpeed's name of the op's builder, such as `ShareMemCommBuilder`. An op
            that this machine cannot build is left to DeepSpeed, which does without or says why.
    """
    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible():
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "mmloom.lock").open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        # While we hold our lock none of our processes compiles: torch's is a dead one's.
        stale = folder / "lock"
        if stale.exists():
            log.warning("%s: left by a killed process; removed", stale)
            stale.unlink(missing_ok=True)
        builder.load()
