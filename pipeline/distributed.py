"""The process group: this process's rank, its device, and how ranks find each other."""

from __future__ import annotations

import logging
import os
import resource
import socket
import warnings
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from pipeline.compat.deepspeed_ops import load_op


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start_ranks() -> None:
    """Join the process group; without a launcher this process is the only rank."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    accelerator = get_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        # Ranks on one machine would otherwise each start a thread per core and stand in each
        # other's way. A fixed number also keeps sums in the same order from run to run.
        local_ranks = int(_first_set("LOCAL_WORLD_SIZE", "LOCAL_SIZE") or "1")
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
        load_op("ShareMemCommBuilder")
    else:
        accelerator.set_device(local_rank)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has renamed; nothing a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.init_distributed(verbose=False)


def _first_set(*names: str) -> str | None:
    """Return the first of these variables that is set; launchers differ in what they call it."""
    return next((os.environ[name] for name in names if name in os.environ), None)


def device() -> str:
    """Return the name of this rank's device."""
    name: str = get_accelerator().current_device_name()
    return name


def peak_memory() -> int:
    """Return this rank's peak in bytes: of the accelerator's allocator, or of the process."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells KiB
    return int(accelerator.max_memory_allocated())


def memory_now() -> int:
    """Return the bytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
