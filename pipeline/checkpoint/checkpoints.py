"""Checkpoints of a run: written atomically and asynchronously, verified before they are loaded.

RUN/checkpoints/step-00000040/
    manifest.json        trainer state, the run's identity, and bytes and sha256 of every file
    weights.safetensors  all weights trained by this run and by the runs it started from: all that
                         evaluation or the next stage needs
    objective.safetensors  weights that only this stage's losses need, if there are any
    zero/…               DeepSpeed's own files, without frozen weights
RUN/checkpoints/latest   the name of the newest one, moved last
RUN/checkpoints/best     the name of the one with the lowest validation loss, if any was validated
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
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
from model.spec.system import decay_start
from pipeline.checkpoint.adapters import ADAPTERS, BASE, check_adapters
from pipeline.checkpoint.async_writer import AsyncWriter, SaveStatus
from pipeline.checkpoint.files import (
    VALIDATION,
    WEIGHTS,
    ZERO,
    CheckpointFolder,
    Checksums,
    checksums,
    find_damage,
    read_manifest,
    step_of,
)
from pipeline.checkpoint.reshard import load_resharded
from pipeline.checkpoint.snapshot import Snapshot, snapshot
from pipeline.compat.deepspeed import own_values
from pipeline.config.older_versions import check_manifest
from pipeline.config.run_config import check_run_folder
from pipeline.config.trainer_state import TrainerState
from pipeline.distributed import device

log = logging.getLogger(__name__)

_MAX_FAILURES = 2
"""The run stops after this many consecutive checkpoints could not be written."""


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Which checkpoints are kept.

    Args:
        newest: the number of newest checkpoints to keep.
        every: a checkpoint whose step is a multiple of this is never deleted; None for none.
    """

    newest: int = 2
    every: int | None = None


@dataclass
class _PendingSave:
    """A checkpoint that was copied and is being written by all ranks, or published by rank 0.

    It is published only after a step with its weights had a finite loss.
    """

    state: TrainerState
    partial: Path
    validation: Mapping[str, Any] | None = None
    confirmed: bool = False
    written: bool = False


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: the run folder.
        identity: what must be equal for a resumed run to continue the same loss curve; a flat
            mapping of names to JSON values. `steps` may be more than they were.
        complete: returns a checkpoint's identity as this run would have written it: with what an
            older version left out, and with data from which samples were removed since.
        retention: which checkpoints are kept.
        inherited: weights of another run; they are saved whether trained or not.
        objective_only: whether only this stage's losses need a weight; such weights are saved in
            a file of their own.
    """

    adapters: Mapping[str, Any] | None = None
    """Of this run, see `pipeline.checkpoint.adapters`; set once the model is built."""
    base: Mapping[str, str] | None = None
    """What a reward model was trained on; see there, too."""

    def __init__(
        self,
        run: Path,
        identity: Mapping[str, Any],
        retention: RetentionPolicy,
        inherited: Path | None = None,
        objective_only: Callable[[str], bool] = lambda name: False,
        complete: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]] = lambda _, stored: stored,
    ) -> None:
        self.folder = CheckpointFolder(run / "checkpoints")
        self._run = run
        self._identity = dict(identity)
        self._complete = complete
        self._retention = retention
        self._inherited = inherited
        self._objective_only = objective_only
        self._writer = AsyncWriter()
        self._pending: _PendingSave | None = None
        self._failures = 0
        self._best: Mapping[str, Any] | None = None

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        state: TrainerState,
        validation: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy a checkpoint and start writing it in the background; a collective.

        Waits for an unfinished earlier one. Older checkpoints stay until the new one is complete
        and confirmed.

        Args:
            engine: DeepSpeed's.
            state: the progress so far.
            validation: of these weights, as `validation.jsonl` has it; None without.

        Raises:
            UserError: a weight is not finite, or too many consecutive checkpoints could not be
                written.
        """
        self.confirm()
        self._wait_for_pending()
        self._check_finite(engine, state.step)
        if dist.get_rank() == 0:
            self.folder.remove_leftovers()  # other ranks write only after the copy's first barrier
        partial = self.folder.partial(state.step)
        copied = snapshot(
            engine, partial, inherited=self._inherited, objective_only=self._objective_only
        )
        self._pending = _PendingSave(state=state, partial=partial, validation=validation)
        self._writer.start(lambda: self._write(copied, partial))

    def is_best(self, validation: Mapping[str, Any]) -> bool:
        """Whether a validation's loss is lower than that of every checkpoint on the same data.

        The same on every rank; needs no collective.
        """
        others = [self._best, self._pending.validation if self._pending else None]
        losses = [one["loss"] for one in others if one and one["data"] == validation["data"]]
        loss = validation["loss"]
        return loss is not None and all(other is None or loss < other for other in losses)

    def confirm(self) -> None:
        """Allow the pending checkpoint to replace older ones: its weights gave a finite loss."""
        if self._pending is not None:
            self._pending.confirmed = True

    def discard(self) -> None:
        """Give up a pending checkpoint that was not confirmed; a collective."""
        if self._pending is not None and not self._pending.confirmed:
            self._writer.wait()
            dist.barrier()
            self._pending = None
            if dist.get_rank() == 0:
                self.folder.remove_leftovers()

    def _check_finite(self, engine: deepspeed.DeepSpeedEngine, step: int) -> None:
        """Raise UserError on all ranks if a trainable weight is not finite on any."""
        trained = (weight for weight in engine.module.parameters() if weight.requires_grad)
        bad = torch.stack(
            [~torch.isfinite(own_values(weight)).all().to(device()) for weight in trained]
        ).sum()
        dist.all_reduce(bad)
        if bad:
            raise UserError(
                f"weights are not finite after step {step} and are not saved; lower the learning "
                f"rate, then resume from {self.newest}"
            )

    @property
    def newest(self) -> str:
        """The checkpoint that a run resumes from, in words."""
        newest = self.folder.latest()
        return f"the checkpoint {newest}" if newest else "the beginning"

    @property
    def newest_step(self) -> int:
        """The step after which the checkpoint was written that a run resumes from."""
        newest = self.folder.latest()
        return step_of(self.folder.path / newest) if newest else 0

    @property
    def status(self) -> SaveStatus:
        """This rank's status of the pending checkpoint, to be summed over ranks for `advance`."""
        return self._writer.status if self._pending is not None else SaveStatus()

    def advance(self, status: SaveStatus) -> None:
        """Publish or finish the pending checkpoint if all ranks have got that far.

        A collective that does not wait for disks.

        Args:
            status: the sum over all ranks.

        Raises:
            UserError: too many consecutive checkpoints could not be written.
        """
        pending = self._pending
        if pending is None or status.busy:
            return
        if status.failed:
            self._give_up(pending)
        elif pending.written:
            self._pending, self._failures = None, 0
            if pending.validation is not None and self.is_best(pending.validation):
                self._best = pending.validation
        elif pending.confirmed:
            pending.written = True
            if dist.get_rank() == 0:
                self._writer.start(lambda: self._publish(pending))

    def finish(self) -> None:
        """Wait until the pending checkpoint is complete, confirmed or not; a collective.

        Raises:
            UserError: it could not be written.
        """
        self.confirm()
        self._wait_for_pending()
        if self._failures:
            path = self.folder.path
            raise UserError(f"{path}: the last one could not be written; {self._how_to_resume}")

    def _wait_for_pending(self) -> None:
        while self._pending is not None:
            self._writer.wait()
            own = self.status
            total = torch.tensor([own.busy, own.failed], device=device())
            dist.all_reduce(total)
            busy, failed = total.tolist()
            self.advance(SaveStatus(busy=busy, failed=failed))

    def _write(self, copied: Snapshot, partial: Path) -> None:
        written = copied.write(partial)
        write_json(_checksum_file(partial, dist.get_rank()), written)

    def _publish(self, pending: _PendingSave) -> None:
        files: Checksums = {}
        for rank in range(dist.get_world_size()):
            path = _checksum_file(pending.partial, rank)
            files |= json.loads(path.read_bytes())
            path.unlink()
        content: dict[str, Any] = {
            "trainer_state": asdict(pending.state),
            "identity": self._identity,
            ADAPTERS: self.adapters,
        }
        if self.base is not None:
            content[BASE] = self.base
        if pending.validation is not None:
            content[VALIDATION] = pending.validation
        self.folder.publish(pending.partial, content, files)
        self.folder.prune(self._retention.newest, self._retention.every)

    def _give_up(self, pending: _PendingSave) -> None:
        """Continue without a checkpoint that could not be written, unless that happens again."""
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, self._writer.error)
        first = next(f"rank {rank}: {error}" for rank, error in enumerate(errors) if error)
        if dist.get_rank() == 0:
            self.folder.remove_leftovers()
        self._pending = None
        self._failures += 1
        path = self.folder.final(pending.state.step)
        if self._failures == _MAX_FAILURES:
            raise UserError(
                f"{path}: could not be written ({first}), nor the one before; {self._how_to_resume}"
            )
        log.error("%s: could not be written (%s); the run continues without it", path, first)

    @property
    def _how_to_resume(self) -> str:
        return f"free some disk space, then the same command resumes from {self.newest}"

    def choose(self, resume: str) -> Path | None:
        """Return the checkpoint to resume from, or None to start a new run; changes nothing.

        Args:
            resume: `auto` for the newest valid one, `never`, or the number of a step.

        Raises:
            UserError: all checkpoints are damaged, the step has none, `never` though there are
                checkpoints, or one of another run (preset, data, seed …) or of an older version.
        """
        check_run_folder(self._run)
        existing = self.folder.complete()
        if resume == "never":
            if existing:
                raise UserError(
                    f"{self.folder.path}: has checkpoints; name another --output, or remove them"
                )
            return None
        chosen = self.folder.newest_valid() if resume == "auto" else self._of_step(resume)
        if chosen is None and resume == "auto" and existing:
            raise UserError(
                f"{self.folder.path}: no checkpoint is valid; remove it to start a new run"
            )
        if chosen is not None:
            self._check_identity(chosen)
        return chosen

    def _of_step(self, resume: str) -> Path:
        existing = self.folder.complete()
        chosen = {str(step_of(path)): path for path in existing}.get(resume.lstrip("0") or "0")
        if chosen is None:
            steps = ", ".join(str(step_of(path)) for path in existing) or "none"
            raise UserError(
                f"--resume {resume}: want auto, never or a step with a checkpoint ({steps})"
            )
        if (damage := find_damage(chosen)) is not None:
            raise UserError(f"{chosen}: {damage}")
        check_manifest(self._run, read_manifest(chosen))
        return chosen

    def _check_identity(self, checkpoint: Path) -> None:
        stored = self._complete(checkpoint, read_manifest(checkpoint)["identity"])
        for name, value in self._identity.items():
            if name == "steps":
                wsd = self._identity.get("schedule") == "wsd"
                decay = self._identity["decay"] if wsd else 0.0
                check_steps(checkpoint, stored.get(name, value), value, decay)
            elif stored.get(name) != value:
                field, theirs, ours = _first_difference(name, stored.get(name), value)
                raise UserError(
                    f"{checkpoint}: belongs to a run with {field} {theirs!r}, this one has "
                    f"{ours!r}; give the same options, or another --output"
                )

    def load(self, engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> TrainerState:
        """Load a chosen checkpoint into the engine; a collective. Newer ones are then ignored.

        Raises:
            UserError: its adapters were trained on another backbone.
        """
        check_adapters(checkpoint / WEIGHTS, self.adapters)
        best = self.folder.best(checkpoint.name)
        self._best = best and best[1]
        files = checkpoint / ZERO
        saved, ranks = len(list(files.glob("*_optim_states.pt"))), dist.get_world_size()
        if saved in (0, ranks):
            engine.load_checkpoint(str(checkpoint), tag=ZERO, load_module_strict=False)
        else:
            load_resharded(engine, files)
            log.info("%s: written by %d ranks, resharded to %d", checkpoint, saved, ranks)
        if dist.get_rank() == 0:
            self.folder.point_latest(checkpoint.name)
            self.folder.point_best()
        return TrainerState(**read_manifest(checkpoint)["trainer_state"])


def _first_difference(name: str, stored: object, value: object) -> tuple[str, object, object]:
    """Return the path of the first field in which two unequal JSON values differ, and both values.

    The whole of a model's configuration would fill a screen.
    """
    pairs: list[tuple[object, object, object]] = []
    if isinstance(stored, dict) and isinstance(value, dict):
        names = dict.fromkeys([*stored, *value])
        pairs = [(key, stored.get(key), value.get(key)) for key in names]
    elif isinstance(stored, list) and isinstance(value, list) and len(stored) == len(value):
        pairs = [(place, *both) for place, both in enumerate(zip(stored, value, strict=True))]
    for key, theirs, ours in pairs:
        if theirs != ours:
            return _first_difference(f"{name}.{key}", theirs, ours)
    return name, stored, value


def check_steps(checkpoint: Path, stored: int, steps: int, decay: float = 0.0) -> None:
    """Check the steps of a run that resumes; there may be more (`--epochs`, `--max-steps` raised).

    The rule for the learning rate is *stretching*: from the resumed step on, it is that of a run
    that had the new number of steps from the start. Under `wsd` that changes nothing up to a
    checkpoint of the stable phase, which is thus extended; in a later one the rate has decayed.

    Args:
        checkpoint: to resume from.
        stored: steps of its run.
        steps: of this run.
        decay: share of the steps in which `wsd` decays; 0 for other schedules.

    Raises:
        UserError: there are fewer than before.
    """
    if steps < stored:
        raise UserError(
            f"{checkpoint}: belongs to a run of {stored} steps, this one has {steps}; --epochs and "
            "--max-steps may be raised, not lowered; give the same options, or another --output"
        )
    if steps > stored and decay and step_of(checkpoint) > decay_start(stored, decay):
        log.warning(
            "%s: its learning rate has decayed since step %d and now rises again; to extend the "
            "stable phase, give --resume the step of a checkpoint before",
            *(checkpoint, decay_start(stored, decay)),
        )
    if steps > stored:
        log.info(
            "%d steps in place of %d: from here on, the learning rate is that of a run of %d steps",
            *(steps, stored, steps),
        )


def _checksum_file(partial: Path, rank: int) -> Path:
    """Return the file with the checksums of what a rank has written, for rank 0's manifest."""
    return partial / f"rank-{rank:05d}.json"


def write_weights(run: Path, weights: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Write weights that were not trained here (an import) as the checkpoint of step 0.

    Evaluation and a stage that starts from the run read it; it cannot be resumed from.
    """
    folder = CheckpointFolder(run / "checkpoints")
    partial = folder.partial(0)
    partial.mkdir(parents=True)
    save_file(dict(weights), partial / WEIGHTS)
    content = {"trainer_state": asdict(TrainerState()), "identity": dict(identity)}
    folder.publish(partial, content, checksums(partial, [partial / WEIGHTS]))


def newest_weights(run: Path) -> Path:
    """Return the file of trained weights of a run's newest valid checkpoint.

    Raises:
        UserError: no such run, one of an older version, or one without a valid checkpoint.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    check_run_folder(run)
    chosen = CheckpointFolder(run / "checkpoints").newest_valid()
    if chosen is None:
        raise UserError(f"{run}: has no valid checkpoint; want a run folder with a saved one")
    return chosen / WEIGHTS


def checkpoint_weights(run: Path, checkpoint: str) -> Path:
    """Return the file of trained weights of a run's checkpoint.

    Args:
        run: the run folder.
        checkpoint: `newest`, `best` (by the loss of its validations) or the number of a step.

    Raises:
        UserError: as of `newest_weights`; no such checkpoint, or a damaged one.
    """
    newest = newest_weights(run)
    if checkpoint == "newest":
        return newest
    folder = CheckpointFolder(run / "checkpoints")
    names = {str(step_of(path)): path.name for path in folder.complete()}
    best = folder.best(folder.latest())
    if best is not None:
        names["best"] = best[0]
    if checkpoint not in names:
        known = ", ".join(["newest", *reversed(names)])
        raise UserError(f"{run}: has no checkpoint {checkpoint!r}; want {known}")
    chosen = folder.path / names[checkpoint]
    if (damage := find_damage(chosen)) is not None:
        raise UserError(f"{chosen}: {damage}")
    return chosen / WEIGHTS
