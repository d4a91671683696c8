"""The background writer: its status, and the message of a disk error."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint.async_writer import AsyncWriter, SaveStatus, disk_error


def test_the_status_of_a_task() -> None:
    writer, gate = AsyncWriter(), threading.Event()
    assert writer.status == SaveStatus()
    writer.start(lambda: gate.wait() and None)
    assert writer.status == SaveStatus(busy=1)
    gate.set()
    writer.wait()
    assert (writer.status, writer.error) == (SaveStatus(), None)


def test_a_disk_error_is_reported_and_other_errors_are_raised() -> None:
    writer = AsyncWriter()

    def full() -> None:
        with Path("/dev/full").open("wb") as stream:
            torch.save(torch.zeros(9), stream)

    writer.start(full)
    writer.wait()
    assert writer.status == SaveStatus(failed=1)
    assert writer.error == "No space left on device"

    def fail() -> None:
        raise KeyError("a bug")

    writer.start(fail)
    writer.wait()
    with pytest.raises(KeyError, match="a bug"):
        _ = writer.status


def test_the_disk_error_behind_errors_of_other_libraries(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file") as caught:
        save_file({"a": torch.zeros(9)}, tmp_path / "nowhere" / "file")
    assert disk_error(caught.value) == "No such file or directory"
    assert disk_error(RuntimeError("no disk error")) is None
