"""The commands after a removal request: filter the data, then train on without what was removed.

A run with an untouched checkpoint resumes from it, in its own folder, on data that record which
rows were removed: all other samples keep their steps (`pipeline.data.removed`). A run that has
none, or that began from touched weights, is trained again in a new folder, `RUN-filtered`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.cli import UserError
from pipeline.checkpoint.files import step_of
from pipeline.config.files import CONFIG_FILE
from pipeline.lineage.removal import TouchedRun

Command = list[str]
_SUFFIX = "-filtered"


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What is to be run, in order, and what is to be deleted afterwards.

    Args:
        filters: a command for each data folder with matching samples.
        trainings: a command for each touched run, those first that others begin from.
        stale: touched checkpoints and runs, and old data: to be deleted once all is done.
    """

    filters: Sequence[Command]
    trainings: Sequence[Command]
    stale: Sequence[str]


def continuation(
    touched: Sequence[TouchedRun], patterns: Sequence[str], filtered: Path
) -> Continuation:
    """Return the commands that filter the data of touched runs and continue the runs.

    Args:
        touched: the runs, each after those it began from.
        patterns: of the URLs.
        filtered: the folder for the filtered data, each in a folder named as before.

    Raises:
        UserError: a run that cannot be checked.
    """
    for one in touched:
        if one.unknown:
            raise UserError(one.unknown)
    folders = list(dict.fromkeys(name for one in touched for name in one.samples))
    targets = _targets(folders, filtered)
    outputs: dict[Path, str] = {}
    trainings = []
    for one in touched:
        if one.first_step is not None:
            trainings.append(_training(one, targets, outputs))
    return Continuation(
        filters=[_filter(name, target, patterns) for name, target in targets.items()],
        trainings=trainings,
        stale=[*(str(path) for one in touched for path in one.checkpoints), *folders],
    )


def _targets(folders: Sequence[str], filtered: Path) -> dict[str, str]:
    """Return the new folder of each data folder; mixes go by the names, so these stay."""
    names = [Path(folder).resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return {
        folder: str(filtered / name if unique else filtered / str(number) / name)
        for number, (folder, name) in enumerate(zip(folders, names, strict=True))
    }


def _filter(folder: str, target: str, patterns: Sequence[str]) -> Command:
    words = ["--input", folder, "--output", target, "--keep-positions"]
    return [sys.executable, "-m", "etl.refilter", *words, "--exclude-urls", *patterns]


def _training(one: TouchedRun, targets: Mapping[str, str], outputs: dict[Path, str]) -> Command:
    """Return the command that continues a run; notes its output for those that began from it."""
    run, folder = one.history.run, one.history.folder
    resumes = one.origin is None and one.untouched is not None
    output = str(folder) if resumes else f"{folder}{_SUFFIX}"
    outputs[folder.resolve()] = output
    words = [run.stage, str(folder / CONFIG_FILE), "--output", output]
    words += ["--data", *(targets.get(name, name) for name in run.data)]
    if run.mix.shares:
        shares = (share.rpartition("=") for share in run.mix.shares)
        words += ["--mix", *(f"{targets.get(name, name)}={value}" for name, _, value in shares)]
    if one.origin is not None:
        words += ["--init-from", outputs[one.origin.run]]
    if resumes:
        assert one.untouched is not None
        words += ["--resume", str(step_of(one.untouched))]
    return [*_launcher(one.history.parts[-1].ranks if one.history.parts else 1), *words]


def _launcher(ranks: int) -> Command:
    if ranks == 1:
        return [sys.executable, "-m", "pipeline"]
    program = str(Path(sys.executable).with_name("deepspeed"))
    return [program, "--num_accelerators", str(ranks), "--module", "pipeline"]
