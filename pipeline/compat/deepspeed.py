"""DeepSpeed's internals: its compiled ops, what it saves, and the gradients that ZeRO-3 holds.

torch guards the compilation of an extension with a lock file, and waits while that file exists. A
process that is killed while it compiles leaves the file behind, and every later run on the machine
would hang. So ops are loaded under a lock that is taken over when its owner has died.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import _get_build_directory

from etl.storage.lock import owner_lock

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
    with owner_lock(folder / "mmloom-owner.lock", name=str(folder), wait=True):
        # While we hold this lock no process of ours compiles: torch's file is a dead process's.
        stale = folder / "lock"
        if stale.exists():
            log.warning("%s: left by a killed process; removed", stale)
            stale.unlink(missing_ok=True)
        builder.load()


def init_process_group(timeout: timedelta) -> None:
    """Initialize DeepSpeed's process group without what it prints about ops to stdout.

    Args:
        timeout: of a collective.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        deepspeed.init_distributed(verbose=False, timeout=timeout)
    log.debug("%s", printed.getvalue().strip())


def clear_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """Zero the gradients that ZeRO-3 still holds from the last step; call before a step begins.

    DeepSpeed overwrites a weight's gradient in the first micro-step of a step and adds to it in the
    others (`partition_grads`, whatever `zero_grad` may suggest). A weight without a gradient in
    that micro-step, because no rank has a medium of its kind there, would keep the gradient of an
    earlier step and be updated by it once more.
    """
    buffer = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if buffer is None:  # not ZeRO-3
        return
    buffer.zero_()
    for master in engine.optimizer.fp32_partitioned_groups_flat:
        if master.grad is not None:  # on the host, of an offloaded optimizer
            master.grad.zero_()


@contextlib.contextmanager
def recovery_script_deferred(
    engine: deepspeed.DeepSpeedEngine,
) -> Iterator[Callable[[str], None]]:
    """Keep `save_checkpoint` from writing its conversion script; yield what writes it to a folder.

    DeepSpeed would write a file in the step, on rank 0 alone: an error there would leave the other
    ranks waiting.
    """
    write = engine._copy_recovery_script
    engine._copy_recovery_script = lambda folder: None
    try:
        yield write
    finally:
        del engine._copy_recovery_script  # restores the method


def trained_shapes(engine: deepspeed.DeepSpeedEngine) -> list[Mapping[str, torch.Size]]:
    """Return the names and shapes of the trained parameters of each group, as in `param_shapes`."""
    shapes: list[Mapping[str, torch.Size]] = engine._get_zero_param_shapes()
    return shapes


def own_values(weight: torch.nn.Parameter) -> torch.Tensor:
    """Return what this rank holds of a weight: all of it, or its partition under ZeRO-3.

    All partitions of a weight are equally long. What exceeds the weight in the last ones is
    uninitialized memory, which may be anything, NaN included.
    """
    if not hasattr(weight, "ds_tensor"):
        return weight.detach()
    held: Any = weight  # with DeepSpeed's attributes
    partition: torch.Tensor = held.ds_tensor.detach()
    before = held.ds_zero_partition_rank * partition.numel()
    return partition[: max(held.ds_numel - before, 0)]
