"""Checkpoints: written whole or not at all, checked before they are believed.

RUN/checkpoints/step-00000040/
    manifest.json        what it is of, and bytes and sha256 of every file
    weights.safetensors  what this run and those that it started from have trained: all that
                         evaluation or the next stage needs
    objective.safetensors  what this stage has trained for its losses alone, if anything
    zero/…               DeepSpeed's own files, without frozen weights
RUN/checkpoints/latest   the name of the newest one, moved last
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from etl.atomic import atomic_file, file_sha256, write_json
from etl.command import UserError
from pipeline.engine import gathered
from pipeline.saving.redeal import load_redealt

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
APART = "objective.safetensors"
_ZERO = "zero"
_MANIFEST = "manifest.json"
_PREFIX = "step-"


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a run stands after a completed step; a resumed run goes on from here.

    Args:
        step: completed optimizer steps.
        samples: samples delivered to completed steps, without the bad ones.
        bad: samples that could not be used.
        tokens: tokens delivered, padding not counted.
    """

    step: int = 0
    samples: int = 0
    bad: int = 0
    tokens: int = 0


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: the run folder.
        identity: what must be the same for a resume to continue the same loss curve; a flat
            mapping of names to JSON values.
        keep: how many checkpoints stay.
        inherited: names of weights that came from another run; they are saved, trained or not.
        apart: which weights no other stage has: they are saved in a file of their own.
    """

    def __init__(
        self,
        run: Path,
        identity: Mapping[str, Any],
        keep: int,
        inherited: Collection[str] = (),
        apart: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.folder = run / "checkpoints"
        self._identity = dict(identity)
        self._keep = keep
        self._inherited = frozenset(inherited)
        self._apart = apart

    def save(self, engine: deepspeed.DeepSpeedEngine, cursor: Cursor) -> None:
        """Write a checkpoint; a collective. What was there before stays until this one is whole."""
        name = f"{_PREFIX}{cursor.step:08d}"
        partial = self.folder / f"{name}.partial"
        rank = dist.get_rank()
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(
            str(partial), tag=_ZERO, save_latest=False, exclude_frozen_parameters=True
        )
        saved = [
            (n, p)
            for n, p in engine.module.named_parameters()
            if p.requires_grad or n in self._inherited
        ]
        weights = {}
        for parameter, tensor in gathered(saved):
            if rank == 0:
                weights[parameter] = tensor.contiguous()
        dist.barrier()
        if rank == 0:
            save_file({n: t for n, t in weights.items() if not self._apart(n)}, partial / WEIGHTS)
            apart = {n: t for n, t in weights.items() if self._apart(n)}
            if apart:
                save_file(apart, partial / APART)
            self.publish(partial, cursor)
        dist.barrier()

    def publish(self, partial: Path, cursor: Cursor) -> None:
        """Describe, rename, point `latest` at it, and only then drop what is too old."""
        final = self.folder / f"{_PREFIX}{cursor.step:08d}"
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        described = {
            str(path.relative_to(partial)): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in files
        }
        write_json(
            partial / _MANIFEST,
            {"cursor": asdict(cursor), "identity": self._identity, "files": described},
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        self._point_latest(final.name)
        older = [path for path in _steps(self.folder) if path.name < final.name]
        for old in older[self._keep - 1 :]:
            shutil.rmtree(old)

    def _point_latest(self, name: str) -> None:
        with atomic_file(self.folder / "latest") as stream:
            stream.write(f"{name}\n".encode())

    def choose(self, resume: str) -> Path | None:
        """Return the checkpoint to go on from, or None to start anew; reads, changes nothing.

        Args:
            resume: `auto` for the newest sound one, `never`, or a step's number.

        Raises:
            UserError: none is sound though there are some, no such step, `never` though there
                are checkpoints, or one of another run (preset, data, seed …).
        """
        if resume == "never":
            if _steps(self.folder):
                raise UserError(
                    f"{self.folder}: holds checkpoints; name another --output, or remove them"
                )
            return None
        chosen = _newest_sound(self.folder) if resume == "auto" else self._numbered(resume)
        if chosen is None and resume == "auto" and _steps(self.folder):
            raise UserError(f"{self.folder}: no checkpoint is sound; remove it to start anew")
        if chosen is not None:
            self._check_identity(chosen)
        return chosen

    def _numbered(self, resume: str) -> Path:
        found = _steps(self.folder)
        chosen = {str(_step_of(path)): path for path in found}.get(resume.lstrip("0") or "0")
        if chosen is None:
            steps = ", ".join(str(_step_of(path)) for path in found) or "none"
            raise UserError(
                f"--resume {resume}: want auto, never or a step with a checkpoint ({steps})"
            )
        if (damage := _damage(chosen)) is not None:
            raise UserError(f"{chosen}: {damage}")
        return chosen

    def _check_identity(self, checkpoint: Path) -> None:
        stored = json.loads((checkpoint / _MANIFEST).read_bytes())["identity"]
        for name, value in self._identity.items():
            if stored.get(name) != value:
                raise UserError(
                    f"{checkpoint}: is of a run with {name} {stored.get(name)!r}, this one has "
                    f"{value!r}; give the same options, or another --output"
                )

    def load(self, engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> Cursor:
        """Load a chosen checkpoint into the engine; a collective. Later ones no longer count."""
        files = checkpoint / _ZERO
        saved, ranks = len(list(files.glob("*_optim_states.pt"))), dist.get_world_size()
        if saved in (0, ranks):
            engine.load_checkpoint(str(checkpoint), tag=_ZERO, load_module_strict=False)
        else:
            load_redealt(engine, files)
            log.info("%s: written by %d ranks, dealt out to %d", checkpoint, saved, ranks)
        if dist.get_rank() == 0:
            self._point_latest(checkpoint.name)
        return Cursor(**json.loads((checkpoint / _MANIFEST).read_bytes())["cursor"])


def write_weights(run: Path, weights: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Write weights that no step of ours has trained, as the checkpoint of step 0.

    Evaluation and a stage that starts from the run read it; there is nothing to resume.
    """
    checkpoints = Checkpoints(run, identity, keep=1)
    partial = checkpoints.folder / f"{_PREFIX}{0:08d}.partial"
    partial.mkdir(parents=True)
    save_file(dict(weights), partial / WEIGHTS)
    checkpoints.publish(partial, Cursor())


def newest_weights(run: Path) -> Path:
    """Return the newest sound trained weights of a run.

    Raises:
        UserError: no such run, or no sound checkpoint in it.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    chosen = _newest_sound(run / "checkpoints")
    if chosen is None:
        raise UserError(f"{run}: holds no sound checkpoint; is it a run folder that has saved one?")
    return chosen / WEIGHTS


def _steps(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    paths = [path for path in folder.glob(f"{_PREFIX}*") if not path.name.endswith(".partial")]
    return sorted(paths, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _newest_sound(folder: Path) -> Path | None:
    """Return the newest checkpoint whose checksums hold; say what is wrong with newer ones."""
    pointer = folder / "latest"
    latest = pointer.read_text().strip() if pointer.is_file() else None
    for checkpoint in _steps(folder):
        if latest is not None and checkpoint.name > latest:
            continue  # after going on from an older step, the newer ones are another run's future
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        log.warning("%s: %s; going back to the one before it", checkpoint, damage)
    return None


def _damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((checkpoint / _MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return f"damaged: no readable {_MANIFEST}"
    for name, want in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"damaged: {name} is missing"
        if path.stat().st_size != want["bytes"] or file_sha256(path) != want["sha256"]:
            return f"damaged: {name} is not what was written"
    return None
