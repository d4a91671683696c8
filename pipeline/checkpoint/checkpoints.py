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
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from etl.cli import UserError
from etl.storage.atomic import write_json
from pipeline.checkpoint.async_writer import SaveStatus, Writer
from pipeline.checkpoint.files import (
    WEIGHTS,
    ZERO,
    CheckpointFolder,
    Described,
    damage,
    describe,
    read_manifest,
    step_of,
)
from pipeline.checkpoint.reshard import load_resharded
from pipeline.checkpoint.snapshot import Snapshot, snapshot
from pipeline.config.trainer_state import TrainerState
from pipeline.distributed import device

log = logging.getLogger(__name__)

_MOST_FAILURES = 2
"""Checkpoints in a row that may fail to be written before the run stops."""


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Which checkpoints stay.

    Args:
        newest: how many of the newest.
        every: steps of which each multiple stays for good; None for none.
    """

    newest: int = 2
    every: int | None = None


@dataclass
class _Pending:
    """A checkpoint on its way: copied, being written by all, or being published by rank 0."""

    cursor: TrainerState
    partial: Path
    written: bool = False


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: the run folder.
        identity: what must be the same for a resume to continue the same loss curve; a flat
            mapping of names to JSON values.
        keep: which of them stay.
        inherited: names of weights that came from another run; they are saved, trained or not.
        apart: which weights no other stage has: they are saved in a file of their own.
    """

    def __init__(
        self,
        run: Path,
        identity: Mapping[str, Any],
        keep: RetentionPolicy,
        inherited: Collection[str] = (),
        apart: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.folder = CheckpointFolder(run / "checkpoints")
        self._identity = dict(identity)
        self._keep = keep
        self._inherited = frozenset(inherited)
        self._apart = apart
        self._writer = Writer()
        self._pending: _Pending | None = None
        self._failures = 0

    def begin(self, engine: deepspeed.DeepSpeedEngine, cursor: TrainerState) -> None:
        """Copy a checkpoint and have it written beside training; a collective.

        One that is still on its way is waited for. What was there before stays until the new one
        is whole.

        Raises:
            UserError: too many in a row could not be written.
        """
        self._finish()
        if dist.get_rank() == 0:
            self.folder.remove_leftovers()  # others write after the copy's first barrier
        partial = self.folder.partial(cursor.step)
        copied = snapshot(engine, partial, inherited=self._inherited, apart=self._apart)
        self._pending = _Pending(cursor=cursor, partial=partial)
        self._writer.start(lambda: self._write(copied, partial))

    @property
    def standing(self) -> SaveStatus:
        """How far this rank is with what was begun; the others are to know before `turn`."""
        return self._writer.standing if self._pending is not None else SaveStatus()

    def turn(self, standing: SaveStatus) -> None:
        """Go on with what was begun as far as all ranks are; a collective, which does not wait.

        Args:
            standing: the sum of all ranks'.

        Raises:
            UserError: too many in a row could not be written.
        """
        pending = self._pending
        if pending is None or standing.busy:
            return
        if standing.failed:
            self._give_up(pending)
        elif pending.written:
            self._pending, self._failures = None, 0
        else:
            pending.written = True
            if dist.get_rank() == 0:
                self._writer.start(lambda: self._publish(pending))

    def finish(self) -> None:
        """Wait until what was begun is there; a collective.

        Raises:
            UserError: it could not be written.
        """
        self._finish()
        if self._failures:
            raise UserError(f"{self.folder.path}: the run's end could not be saved; {self._way_on}")

    def _finish(self) -> None:
        while self._pending is not None:
            self._writer.wait()
            own = self.standing
            both = torch.tensor([own.busy, own.failed], device=device())
            dist.all_reduce(both)
            busy, failed = both.tolist()
            self.turn(SaveStatus(busy=busy, failed=failed))

    def _write(self, copied: Snapshot, partial: Path) -> None:
        described = copied.write(partial)
        write_json(_note(partial, dist.get_rank()), described)

    def _publish(self, pending: _Pending) -> None:
        files: Described = {}
        for rank in range(dist.get_world_size()):
            note = _note(pending.partial, rank)
            files |= json.loads(note.read_bytes())
            note.unlink()
        content = {"cursor": asdict(pending.cursor), "identity": self._identity}
        self.folder.publish(pending.partial, content, files)
        self.folder.prune(self._keep.newest, self._keep.every)

    def _give_up(self, pending: _Pending) -> None:
        """Go on without a checkpoint that could not be written, unless that happens again."""
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, self._writer.trouble)
        told = next(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)
        if dist.get_rank() == 0:
            self.folder.remove_leftovers()
        self._pending = None
        self._failures += 1
        place = self.folder.final(pending.cursor.step)
        if self._failures == _MOST_FAILURES:
            raise UserError(
                f"{place}: could not be written ({told}), nor the one before; {self._way_on}"
            )
        log.error("%s: could not be written (%s); the run goes on without it", place, told)

    @property
    def _way_on(self) -> str:
        newest = self.folder.latest()
        step = f"the checkpoint {newest}" if newest else "the beginning"
        return f"make room, then the same command goes on from {step}"

    def choose(self, resume: str) -> Path | None:
        """Return the checkpoint to go on from, or None to start anew; reads, changes nothing.

        Args:
            resume: `auto` for the newest sound one, `never`, or a step's number.

        Raises:
            UserError: none is sound though there are some, no such step, `never` though there
                are checkpoints, or one of another run (preset, data, seed …).
        """
        there = self.folder.steps()
        if resume == "never":
            if there:
                raise UserError(
                    f"{self.folder.path}: holds checkpoints; name another --output, or remove them"
                )
            return None
        chosen = self.folder.newest_sound() if resume == "auto" else self._numbered(resume)
        if chosen is None and resume == "auto" and there:
            raise UserError(f"{self.folder.path}: no checkpoint is sound; remove it to start anew")
        if chosen is not None:
            self._check_identity(chosen)
        return chosen

    def _numbered(self, resume: str) -> Path:
        found = self.folder.steps()
        chosen = {str(step_of(path)): path for path in found}.get(resume.lstrip("0") or "0")
        if chosen is None:
            steps = ", ".join(str(step_of(path)) for path in found) or "none"
            raise UserError(
                f"--resume {resume}: want auto, never or a step with a checkpoint ({steps})"
            )
        if (fault := damage(chosen)) is not None:
            raise UserError(f"{chosen}: {fault}")
        return chosen

    def _check_identity(self, checkpoint: Path) -> None:
        stored = read_manifest(checkpoint)["identity"]
        for name, value in self._identity.items():
            if stored.get(name) != value:
                raise UserError(
                    f"{checkpoint}: is of a run with {name} {stored.get(name)!r}, this one has "
                    f"{value!r}; give the same options, or another --output"
                )

    def load(self, engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> TrainerState:
        """Load a chosen checkpoint into the engine; a collective. Later ones no longer count."""
        files = checkpoint / ZERO
        saved, ranks = len(list(files.glob("*_optim_states.pt"))), dist.get_world_size()
        if saved in (0, ranks):
            engine.load_checkpoint(str(checkpoint), tag=ZERO, load_module_strict=False)
        else:
            load_resharded(engine, files)
            log.info("%s: written by %d ranks, dealt out to %d", checkpoint, saved, ranks)
        if dist.get_rank() == 0:
            self.folder.point_latest(checkpoint.name)
        return TrainerState(**read_manifest(checkpoint)["cursor"])


def _note(partial: Path, rank: int) -> Path:
    """Return where a rank describes what it has written, for rank 0's manifest."""
    return partial / f"rank-{rank:05d}.json"


def write_weights(run: Path, weights: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Write weights that no step of ours has trained, as the checkpoint of step 0.

    Evaluation and a stage that starts from the run read it; there is nothing to resume.
    """
    folder = CheckpointFolder(run / "checkpoints")
    partial = folder.partial(0)
    partial.mkdir(parents=True)
    save_file(dict(weights), partial / WEIGHTS)
    content = {"cursor": asdict(TrainerState()), "identity": dict(identity)}
    folder.publish(partial, content, describe(partial, [partial / WEIGHTS]))


def newest_weights(run: Path) -> Path:
    """Return the newest sound trained weights of a run.

    Raises:
        UserError: no such run, or no sound checkpoint in it.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    chosen = CheckpointFolder(run / "checkpoints").newest_sound()
    if chosen is None:
        raise UserError(f"{run}: holds no sound checkpoint; is it a run folder that has saved one?")
    return chosen / WEIGHTS
