"""Which checkpoint a run resumes from; saving is tested with a real engine in tests/cluster."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from etl.cli import UserError
from etl.storage.atomic import file_sha256, write_json
from pipeline.checkpoint.checkpoints import (
    Checkpoints,
    RetentionPolicy,
    checkpoint_weights,
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
    files = {weights.name: {"bytes": step, "sha256": file_sha256(weights)}}
    manifest = {"trainer_state": {"step": step}, "identity": IDENTITY, "files": files}
    write_json(folder / "manifest.json", manifest)
    (run / "checkpoints" / "latest").write_text(f"{folder.name}\n")
    return folder


def test_auto_takes_the_newest_valid_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    with pytest.raises(UserError, match="no checkpoint is valid"):
        checkpoints.choose("auto")


def test_partial_checkpoints_do_not_count(tmp_path: Path) -> None:
    complete = make(tmp_path, 5)
    make(tmp_path, 10).rename(tmp_path / "checkpoints" / "step-00000010.partial")
    assert Checkpoints(tmp_path, IDENTITY, RetentionPolicy()).choose("auto") == complete
    assert newest_weights(tmp_path) == complete / "weights.safetensors"


def test_checkpoints_newer_than_latest_are_ignored(tmp_path: Path) -> None:
    older, _ = make(tmp_path, 5), make(tmp_path, 10)
    (tmp_path / "checkpoints" / "latest").write_text(f"{older.name}\n")
    assert Checkpoints(tmp_path, IDENTITY, RetentionPolicy()).choose("auto") == older


def test_a_step_by_number(tmp_path: Path) -> None:
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy())
    assert checkpoints.choose("5") == older
    with pytest.raises(UserError, match=r"want auto, never or a step with a checkpoint \(10, 5\)"):
        checkpoints.choose("7")
    with pytest.raises(UserError, match="has checkpoints"):
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


@pytest.mark.parametrize("resume", ["auto", "5"])
def test_a_checkpoint_of_an_older_version_is_refused_in_one_line(
    resume: str, tmp_path: Path
) -> None:
    manifest_file = make(tmp_path, 5) / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    manifest["cursor"] = manifest.pop("trainer_state")
    write_json(manifest_file, manifest)
    message = (
        f"{tmp_path}: made by an older version of mmloom (it has `cursor`, now `trainer_state`)"
    )
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path, IDENTITY, RetentionPolicy()).choose(resume)
    assert str(error.value) == f"{message}; start a new run folder"
    with pytest.raises(UserError) as error:
        newest_weights(tmp_path)
    assert str(error.value).startswith(message)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Be the only rank."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_weights_that_an_earlier_run_trained_are_saved_though_frozen_now(tmp_path: Path) -> None:
    module = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("a", "b", "c")})
    module["a"].requires_grad_(False)
    module["b"].requires_grad_(False)

    class Engine:
        """A fake of DeepSpeed's engine, whose own files do not matter here."""

        def __init__(self) -> None:
            self.module = module
            self.checkpoint_engine = None

        def _copy_recovery_script(self, folder: str) -> None:
            (Path(folder) / "zero_to_fp32.py").touch()

        def save_checkpoint(self, folder: str, tag: str, **_: object) -> None:
            self.checkpoint_engine.save({"step": 3}, str(Path(folder) / tag / "states.pt"))

    earlier = tmp_path / "earlier.safetensors"
    save_file({"b.weight": torch.zeros(1)}, earlier)
    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy(newest=1), inherited=earlier)
    checkpoints.save(Engine(), TrainerState(step=3))  # type: ignore[arg-type]
    checkpoints.finish()
    saved = load_file(newest_weights(tmp_path))
    assert saved.keys() == {"b.weight", "c.weight"}
    assert torch.equal(saved["b.weight"], module["b"].weight)


def test_imported_weights_are_a_checkpoint_of_step_0(tmp_path: Path) -> None:
    weights = {"b.weight": torch.ones(2)}
    write_weights(tmp_path, weights, {"preset": "digits"})
    assert newest_weights(tmp_path).parent.name == "step-00000000"
    assert torch.equal(load_file(newest_weights(tmp_path))["b.weight"], torch.ones(2))


def test_weights_of_a_checkpoint_by_name(tmp_path: Path) -> None:
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
        folder = make(tmp_path, step)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["validation"] = {"loss": loss, "data": "d"}
        write_json(folder / "manifest.json", manifest)
    for name, step in (("newest", 3), ("best", 2), ("1", 1)):
        assert checkpoint_weights(tmp_path, name).parent.name == f"step-{step:08d}"
    with pytest.raises(UserError, match=r"has no checkpoint '7'; want newest, best, 1, 2, 3"):
        checkpoint_weights(tmp_path, "7")
    (tmp_path / "checkpoints" / "step-00000002" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged: weights.safetensors is not what was written"):
        checkpoint_weights(tmp_path, "best")


def test_a_validation_is_the_best_if_its_loss_is_the_lowest_on_its_data(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, RetentionPolicy())
    assert checkpoints.is_best({"loss": 2.0, "data": "d"})
    assert not checkpoints.is_best({"loss": None, "data": "d"})
    checkpoints._best = {"loss": 2.0, "data": "d"}
    assert not checkpoints.is_best({"loss": 2.0, "data": "d"})
    assert checkpoints.is_best({"loss": 1.9, "data": "d"})
    assert checkpoints.is_best({"loss": 9.0, "data": "other"})
