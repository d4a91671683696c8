"""Snapshots in host memory do not change when training continues."""

from collections import OrderedDict
from pathlib import Path

import torch

from etl.storage.atomic import file_sha256
from pipeline.checkpoint.snapshot import Snapshot, on_host


def test_a_copy_is_independent_and_shared_tensors_stay_shared() -> None:
    step = torch.zeros(())
    flat = torch.arange(6.0)
    state = OrderedDict(
        a={"step": step, "moment": flat[2:4]}, b=[{"step": step}], scale=(1, flat), groups={"lr": 1}
    )
    copied = on_host(state)
    step += 1
    flat += 1
    state["groups"]["lr"] = 2
    assert type(copied) is OrderedDict
    assert copied["a"]["step"] is copied["b"][0]["step"]
    assert copied["a"]["step"].item() == 0
    assert copied["a"]["moment"].tolist() == [2.0, 3.0]
    assert copied["scale"][1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert copied["groups"] == {"lr": 1}
    assert copied["a"]["moment"].untyped_storage().nbytes() == 8  # not the whole flat tensor


def test_writing_returns_checksums(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000001.partial"
    finished = []
    copied = Snapshot(
        states={partial / "zero" / "a.pt": {"x": torch.ones(3)}},
        tensors={"weights.safetensors": {"w": torch.ones(2)}},
        finish=lambda: finished.append(True),
    )
    written = copied.write(partial)
    assert written.keys() == {"zero/a.pt", "weights.safetensors"}
    for name, entry in written.items():
        assert entry["bytes"] == (partial / name).stat().st_size
        assert entry["sha256"] == file_sha256(partial / name)
    assert finished
    assert torch.equal(torch.load(partial / "zero" / "a.pt")["x"], torch.ones(3))
