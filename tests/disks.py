"""A disk that is soon full: a real file system in memory, of few bytes."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes for as long as the block lasts."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI runs as root and can mount a small disk; here it cannot")
        pytest.skip("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(folder: Path, size: int) -> None:
    """Give a small disk that is mounted another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
