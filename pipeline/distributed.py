"""The process group: rank, world size and device of this process, and its memory."""

from __future__ import annotations

import os
import resource
import socket
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from deepspeed.accelerator import get_accelerator

from etl.cli import UserError
from pipeline.compat.deepspeed import init_process_group, load_op

Value = TypeVar("Value")


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, from the launcher's variables."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def emulates_bfloat16(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this process computes on a CPU that has no instructions for bfloat16."""
    if get_accelerator().device_name() != "cpu" or not cpu_info.is_file():
        return False
    flags = set(cpu_info.read_text().split())
    return flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def init_distributed(stall_seconds: float) -> None:
    """Join the process group; without a launcher this process is the only rank.

    Args:
        stall_seconds: of the watchdog, see `collective_timeout`.

    Raises:
        UserError: the launcher's port is in use, or its address cannot be reached.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in single.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # Each rank on a machine would otherwise start a thread per core. A fixed number of threads
        # also keeps the order of sums the same from run to run.
        local_ranks = int(_first_set("LOCAL_WORLD_SIZE", "LOCAL_SIZE") or "1")
        share = max(1, len(os.sched_getaffinity(0)) // local_ranks)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or share))
        load_op("ShareMemCommBuilder")
    else:
        # Slurm may show each task one GPU of its own: then they all have the number 0. DeepSpeed
        # reads the variable, too.
        local_rank = local_device(
            int(os.environ.get("LOCAL_RANK", "0")), accelerator.device_count()
        )
        os.environ["LOCAL_RANK"] = str(local_rank)
        accelerator.set_device(local_rank)
    # DeepSpeed calls collectives by names that torch has deprecated; a user cannot change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    try:
        init_process_group(collective_timeout(stall_seconds))
    except torch.distributed.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error):
            message = f"{where}: the port is in use; choose another, such as --master_port 29600"
            raise UserError(message) from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{where}: the ranks cannot meet there ({reason})") from None


def barrier() -> None:
    """Wait for the other ranks; without a process group there are none."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def shared(value: Value) -> Value:
    """Return rank 0's value on every rank; without a process group there is no other."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values[0]


def gathered(value: Value) -> list[Value]:
    """Return the values of all ranks, by rank; without a process group there is no other."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Return whether a flag is set on any rank; a collective."""
    if not torch.distributed.is_initialized():
        return flag
    total = torch.tensor([int(flag)], device=device())
    torch.distributed.all_reduce(total)
    return bool(total.item())


def max_over_ranks(number: int) -> int:
    """Return the greatest number of all ranks; a collective."""
    if not torch.distributed.is_initialized():
        return number
    greatest = torch.tensor(number, device=device())
    torch.distributed.all_reduce(greatest, op=torch.distributed.ReduceOp.MAX)
    return int(greatest)


def collective_timeout(stall_seconds: float) -> timedelta:
    """Return the time-out of a collective: so long that the watchdog reports a stall before it.

    The watchdog reports after `stall_seconds`, and its last resort comes after twice that time.
    """
    return timedelta(seconds=2 * stall_seconds + 300)


def local_device(local_rank: int, devices: int) -> int:
    """Return the number of a rank's device among those that are visible to it."""
    return local_rank % max(1, devices)


def _first_set(*names: str) -> str | None:
    """Return the first of these variables that is set; launchers use different names."""
    return next((os.environ[name] for name in names if name in os.environ), None)


def device() -> str:
    """Return the name of this rank's device."""
    name: str = get_accelerator().current_device_name()
    return name


def peak_memory() -> int:
    """Return the peak memory in bytes: of the accelerator's allocator, or of the process."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    return int(accelerator.max_memory_allocated())


def memory_in_use() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
