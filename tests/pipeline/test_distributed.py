"""Joining the process group: its port, its time-outs, and the device of a rank."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from etl.cli import UserError
from pipeline.compat.torch import set_group_timeouts
from pipeline.config.run_config import RunOptions
from pipeline.distributed import (
    collective_timeout,
    emulates_bfloat16,
    init_distributed,
    local_device,
)


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"^127.0.0.1:{port}: the port is in use; choose"):
            init_distributed(1200)


@pytest.mark.usefixtures("alone")
def test_collectives_of_all_groups_time_out_after_the_watchdog() -> None:
    """DeepSpeed gives the groups that it creates no time-out; torch's default is 10 minutes."""
    seconds = RunOptions().stall_seconds
    timeout = collective_timeout(seconds)
    assert timeout > timedelta(seconds=2 * seconds)  # the watchdog's last resort
    groups = [dist.group.WORLD, dist.new_group([0])]
    set_group_timeouts(timeout)
    for group in groups:
        assert group is not None
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timeout


@pytest.mark.parametrize(
    ("local_rank", "devices", "device"), [(0, 8, 0), (5, 8, 5), (3, 1, 0), (0, 0, 0)]
)
def test_each_rank_has_a_device_that_it_sees(local_rank: int, devices: int, device: int) -> None:
    assert local_device(local_rank, devices) == device


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [("fpu avx2 avx512f", True), ("fpu avx512_bf16", False), ("asimd bf16 i8mm", False)],
)
def test_a_cpu_without_instructions_for_bfloat16_emulates_it(
    flags: str, emulated: bool, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert emulates_bfloat16(info) is emulated
    assert emulates_bfloat16(tmp_path / "none") is False
