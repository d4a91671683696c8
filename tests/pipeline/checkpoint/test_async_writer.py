"""A rank's thread: how far it is, and what a disk said that would not take a checkpoint."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint.async_writer import SaveStatus, Writer, disk_trouble


def test_work_is_told_of_while_it_lasts_and_when_it_is_done() -> None:
    writer, gate = Writer(), threading.Event()
    assert writer.standing == SaveStatus()
    writer.start(lambda: gate.wait() and None)
    assert writer.standing == SaveStatus(busy=1)
    gate.set()
    writer.wait()
    assert (writer.standing, writer.trouble) == (SaveStatus(), None)


def test_a_disk_s_fault_is_told_and_ours_is_raised() -> None:
    writer = Writer()

    def full() -> None:
        with Path("/dev/full").open("wb") as stream:
            torch.save(torch.zeros(9), stream)

    writer.start(full)
    writer.wait()
    assert writer.standing == SaveStatus(failed=1)
    assert writer.trouble == "No space left on device"

    def wrong() -> None:
        raise KeyError("a fault of ours")

    writer.start(wrong)
    writer.wait()
    with pytest.raises(KeyError, match="a fault of ours"):
        _ = writer.standing


def test_what_stands_behind_other_libraries_errors(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file") as caught:
        save_file({"a": torch.zeros(9)}, tmp_path / "nowhere" / "file")
    assert disk_trouble(caught.value) == "No such file or directory"
    assert disk_trouble(RuntimeError("no disk in it")) is None
