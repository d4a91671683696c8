"""What a run's steps were trained on: its plan, as each start of the run had it.

The plan follows from data, seed and configuration (`pipeline.data.sampler`), so nothing about a
sample is stored. What a later start may change is in `starts.jsonl`: the number of ranks, how a
step is divided into micro-batches, and the number of epochs, which decides where the data end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.spec.base import FieldError
from pipeline.checkpoint.files import CheckpointFolder, read_manifest
from pipeline.config.run_config import RunConfig, check_run_folder, read_run, with_stage
from pipeline.data.removed import read_removed
from pipeline.run_folder.metrics_writer import last_step
from pipeline.run_folder.starts import read_starts


@dataclass(frozen=True, kw_only=True)
class TrainedSteps:
    """Consecutive steps of a run that one of its starts has trained.

    Args:
        steps: counted from 1.
        ranks: their number.
        run: the configuration of that start.
    """

    steps: range
    ranks: int
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class History:
    """What a run has trained.

    Args:
        folder: the run folder.
        run: its configuration.
        parts: its steps, in order; abandoned ones, after which an earlier checkpoint was resumed,
            are not among them.
        initial_weights: the weights that it began from, a file in a checkpoint; None for none or
            if no start has recorded it.
    """

    folder: Path
    run: RunConfig
    parts: tuple[TrainedSteps, ...]
    initial_weights: Path | None

    @property
    def last_step(self) -> int:
        """The last step; 0 for none."""
        return self.parts[-1].steps.stop - 1 if self.parts else 0

    def part(self, step: int) -> TrainedSteps:
        """Return the part that has a step.

        Raises:
            UserError: the run has no such step.
        """
        for part in self.parts:
            if step in part.steps:
                return part
        raise UserError(f"--step {step}: {self.folder} has the steps 1 to {self.last_step}")


def read_history(folder: Path) -> History:
    """Read what a run has trained.

    Raises:
        UserError: no run folder, or one of an older version.
    """
    check_run_folder(folder)
    run, starts = read_run(folder), read_starts(folder)
    initial = next((one["initial_weights"] for one in starts if one.get("initial_weights")), None)
    return History(
        folder=folder,
        run=run,
        parts=tuple(_parts(folder, run, starts)),
        initial_weights=None if initial is None else Path(initial),
    )


def _parts(folder: Path, run: RunConfig, starts: list[dict[str, Any]]) -> Iterator[TrainedSteps]:
    """Yield the steps of each start that no later one has repeated."""
    ends = [last_step(folder)]
    for start in reversed(starts):
        ends.append(min(ends[-1], start["from_step"]))
    # A start's steps end where the earliest of the later ones has begun.
    for start, end in zip(starts, reversed(ends[:-1]), strict=True):
        reached = start["to_step"]
        steps = range(start["from_step"] + 1, min(end, end if reached is None else reached) + 1)
        if steps:
            yield TrainedSteps(steps=steps, ranks=start["ranks"], run=_as_started(run, start))


def _as_started(run: RunConfig, start: dict[str, Any]) -> RunConfig:
    """Return the configuration with those settings that a start had and a later one has changed."""
    try:
        settings = replace(run.settings, **start.get("settings", {}))
    except (FieldError, TypeError) as error:
        raise UserError(f"{run.output}/starts.jsonl: settings do not fit ({error})") from None
    return replace(run, system=with_stage(run.system, run.stage, settings))


def check_data(history: History, shards: ShardSet) -> None:
    """Check that a run's data are those that it was trained on, but for samples removed since.

    Raises:
        UserError: they are not.
    """
    trained = trained_data(history.folder)
    older = (each.fingerprint for each in read_removed(map(Path, history.run.data)).older_data())
    if trained is not None and trained != shards.fingerprint and trained not in older:
        raise UserError(
            f"{', '.join(history.run.data)}: no longer the shards that {history.folder} was trained"
            " on, so its samples cannot be named; put these back"
        )


def trained_data(folder: Path) -> str | None:
    """Return the fingerprint of the data that a run was last trained on; None if not recorded."""
    for start in reversed(read_starts(folder)):
        if "data" in start:
            return str(start["data"])
    for checkpoint in CheckpointFolder(folder / "checkpoints").complete():
        found = read_manifest(checkpoint)["identity"].get("data")
        return None if found is None else str(found)
    return None
