"""Which checkpoint a run goes on from; writing them is tested with a real engine in cluster/."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from etl.cli import UserError
from etl.storage.atomic import file_sha256, write_json
from pipeline.checkpoint.checkpoints import (
    Checkpoints,
    RetentionPolicy,
    newest_weights,
    write_weights,
)
from pipeline.config.trainer_state import TrainerState

IDENTITY = {"preset": "digits", "seed": 0}


def make(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"w" * step)
    described = {weights.name: {"bytes": step, "sha256": file_sha256(weights)}}
    manifest = {"cursor": {"step": step}, "identity": IDENTITY, "files": described}
    write_json(folder / "manifest.json", manifest)
    (run / "checkpoints" / "latest").write_text(f"{folder.name}\n")
    return folder


def test_auto_takes_the_newest_sound_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy())
    assert checkpoints.choose("auto") is None
    first, second, third = (make(tmp_path, step) for step in (5, 10, 15))
    assert checkpoints.choose("auto") == third
    (third / "weights.safetensors").write_bytes(b"x" * 15)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.choose("auto") == second
    assert "damaged: weights.safetensors is not what was written" in caplog.text
    (second / "manifest.json").write_text("{")
    assert checkpoints.choose("auto") == first
    (first / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint is sound"):
        checkpoints.choose("auto")


def test_half_written_ones_do_not_count(tmp_path: Path) -> None:
    whole = make(tmp_path, 5)
    make(tmp_path, 10).rename(tmp_path / "checkpoints" / "step-00000010.partial")
    assert Checkpoints(tmp_path, IDENTITY, RetentionPolicy()).choose("auto") == whole
    assert newest_weights(tmp_path) == whole / "weights.safetensors"


def test_latest_rules_over_newer_ones(tmp_path: Path) -> None:
    older, _ = make(tmp_path, 5), make(tmp_path, 10)
    (tmp_path / "checkpoints" / "latest").write_text(f"{older.name}\n")
    assert Checkpoints(tmp_path, IDENTITY, RetentionPolicy()).choose("auto") == older


def test_a_step_by_number(tmp_path: Path) -> None:
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy())
    assert checkpoints.choose("5") == older
    with pytest.raises(UserError, match=r"want auto, never or a step with a checkpoint \(10, 5\)"):
        checkpoints.choose("7")
    with pytest.raises(UserError, match="holds checkpoints"):
        checkpoints.choose("never")
    (newer / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.choose("10")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 5)
    other = Checkpoints(tmp_path, IDENTITY | {"preset": "llava_1_5_7b"}, RetentionPolicy())
    with pytest.raises(UserError, match="preset 'digits', this one has 'llava_1_5_7b'"):
        other.choose("auto")
    manifest = json.loads((tmp_path / "checkpoints/step-00000005/manifest.json").read_text())
    assert manifest["identity"] == IDENTITY


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Be the only rank."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_what_an_earlier_run_trained_is_saved_though_it_is_frozen_now(tmp_path: Path) -> None:
    module = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("a", "b", "c")})
    module["a"].requires_grad_(False)
    module["b"].requires_grad_(False)

    class Engine:
        """Stands for DeepSpeed's, whose own files do not matter here."""

        def __init__(self) -> None:
            self.module = module
            self.checkpoint_engine = None

        def _copy_recovery_script(self, folder: str) -> None:
            (Path(folder) / "zero_to_fp32.py").touch()

        def save_checkpoint(self, folder: str, tag: str, **_: object) -> None:
            self.checkpoint_engine.save({"step": 3}, str(Path(folder) / tag / "states.pt"))

    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy(newest=1), inherited=["b.weight"])
    checkpoints.begin(Engine(), TrainerState(step=3))  # type: ignore[arg-type]
    checkpoints.finish()
    saved = load_file(newest_weights(tmp_path))
    assert saved.keys() == {"b.weight", "c.weight"}
    assert torch.equal(saved["b.weight"], module["b"].weight)


def test_weights_that_no_step_has_trained_are_a_checkpoint_too(tmp_path: Path) -> None:
    weights = {"b.weight": torch.ones(2)}
    write_weights(tmp_path, weights, {"preset": "digits"})
    assert newest_weights(tmp_path).parent.name == "step-00000000"
    assert torch.equal(load_file(newest_weights(tmp_path))["b.weight"], torch.ones(2))
