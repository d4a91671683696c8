"""A process killed while DeepSpeed's op is compiled or loaded must not hang those after it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.ranks import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LOAD = 'from pipeline.compat.deepspeed_ops import load_op; load_op("ShareMemCommBuilder")'


def test_a_lock_left_by_a_killed_process_is_removed(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "lock").touch()
    subprocess.run([sys.executable, "-c", LOAD], env=environment, cwd=REPOSITORY, check=True)
    assert (folder / "deepspeed_shm_comm.so").is_file()
    assert not (folder / "lock").exists()
