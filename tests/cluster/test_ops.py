"""A process killed while DeepSpeed's op is compiled or loaded must not hang those after it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_default_build_root

from tests.cluster.ranks import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

OP = "deepspeed_shm_comm"
LOAD = 'from pipeline.compat.deepspeed_ops import load_op; load_op("ShareMemCommBuilder")'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the op is compiled; a process that is dead now has locked it."""
    folder = tmp_path / OP
    folder.mkdir()
    (folder / "lock").touch()
    return folder


def load(folder: Path) -> None:
    environment = {
        **os.environ,
        "TORCH_EXTENSIONS_DIR": str(folder.parent),
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run([sys.executable, "-c", LOAD], env=environment, cwd=REPOSITORY, check=True)
    assert (folder / f"{OP}.so").is_file()
    assert not (folder / "lock").exists()


def test_a_lock_left_by_a_killed_process_is_removed(folder: Path) -> None:
    """The op has been compiled before, as `make setup` does it."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root())
    compiled = next(Path(root).rglob(f"{OP}.so")).parent
    shutil.copytree(compiled, folder, dirs_exist_ok=True)
    made = (folder / f"{OP}.so").stat().st_mtime_ns
    load(folder)
    assert (folder / f"{OP}.so").stat().st_mtime_ns == made


@pytest.mark.nightly(minutes=3)
def test_the_op_is_compiled_where_a_lock_is_left(folder: Path) -> None:
    load(folder)
