"""What a removal request touches: samples, steps, checkpoints, and the runs that began from them.

A checkpoint is touched if a step before it was trained on a sample with a matching URL, or if the
run began from touched weights. Which checkpoint a run began from is in its `starts.jsonl`, and the
checksum of those weights in each of its checkpoints: it is found where run folders have moved, too.

Shapes: n samples of a data folder, r rows that match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etl.cli import UserError
from etl.storage.lineage import url_matcher, urls_of
from etl.storage.shards import ShardSet
from pipeline.checkpoint.files import WEIGHTS, CheckpointFolder, find_damage, read_manifest, step_of
from pipeline.config.files import CONFIG_FILE
from pipeline.data.removed import read_removed
from pipeline.data.sampler import build_stream, steps_with
from pipeline.lineage.history import History, check_data, read_history
from pipeline.run_folder.metrics_writer import skipped_positions

UrlMatch = Callable[[str], bool]
_SHOWN_URLS = 20


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a run began from.

    Args:
        run: its run folder.
        step: of the checkpoint; None if it is not recorded, and the checkpoint is gone.
    """

    run: Path
    step: int | None


@dataclass(frozen=True, kw_only=True)
class TouchedRun:
    """What a removal request touches of one run.

    Args:
        history: of the run.
        samples: matching samples in its data, by folder.
        urls: the first of their matching URLs.
        steps: the steps that were trained on them.
        origin: the touched checkpoint that it began from, if it began from one.
        checkpoints: the touched ones, the oldest first.
        untouched: the newest valid checkpoint that is not touched; None if all are.
        unknown: why the run cannot be checked; empty if it can.
    """

    history: History
    samples: Mapping[str, int] = field(default_factory=dict)
    urls: Sequence[str] = ()
    steps: Sequence[int] = ()
    origin: Origin | None = None
    checkpoints: Sequence[Path] = ()
    untouched: Path | None = None
    unknown: str = ""

    @property
    def first_step(self) -> int | None:
        """The first touched step; 0 if the run began from touched weights; None if none is."""
        if self.origin is not None:
            return 0
        return self.steps[0] if self.steps else None


def find_runs(folder: Path) -> list[Path]:
    """Return all run folders in a folder, sorted; folders within a run are not searched.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / CONFIG_FILE).is_file() and _is_run(folder):
        return [folder]
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink())
    return [run for path in inner for run in find_runs(path)]


def _is_run(folder: Path) -> bool:
    """Whether a folder with a config.json is a run's, and not such as a published checkpoint's."""
    return (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file()


def touched_runs(folders: Iterable[Path], patterns: Sequence[str]) -> list[TouchedRun]:
    """Return the runs that samples with matching URLs touch, each after those it began from.

    Args:
        folders: of the runs to look at; those that they began from are looked at, too.
        patterns: of URLs, see `etl.storage.lineage.url_matcher`.

    Raises:
        UserError: a folder that is not a run's, or one of an older version.
    """
    histories = _with_ancestors(folders)
    origins = _origins(histories)
    cache: dict[str, tuple[NDArray[np.int64], list[str]]] = {}
    found: dict[Path, TouchedRun] = {}
    for folder in _ancestors_first(histories, origins):
        history, origin = histories[folder], origins.get(folder)
        own = _own_samples(history, url_matcher(patterns), cache)
        before = found.get(origin.run) if origin is not None else None
        one = _with_checkpoints(own, origin if before and _inherits(before, origin) else None)
        if one.samples or one.origin or one.unknown:
            found[folder] = one
    return list(found.values())


def _inherits(before: TouchedRun, origin: Origin | None) -> bool:
    """Return whether the checkpoint that a run began from is touched."""
    first = before.first_step
    return (
        first is not None and origin is not None and (origin.step is None or first <= origin.step)
    )


def _with_ancestors(folders: Iterable[Path]) -> dict[Path, History]:
    """Return the history of each run and of those that they began from, by resolved folder."""
    histories: dict[Path, History] = {}
    pending = list(folders)
    while pending:
        folder = pending.pop()
        if folder.resolve() in histories:
            continue
        history = histories[folder.resolve()] = read_history(folder)
        before = history.run.init_from
        if before is not None and (Path(before) / CONFIG_FILE).is_file():
            pending.append(Path(before))
    return histories


def _origins(histories: Mapping[Path, History]) -> dict[Path, Origin]:
    """Return the checkpoint that each run began from, of those whose run is known."""
    by_digest: dict[str, Origin] = {}
    for folder in histories:
        for checkpoint in CheckpointFolder(folder / "checkpoints").complete():
            digest = read_manifest(checkpoint)["files"].get(WEIGHTS, {}).get("sha256")
            by_digest.setdefault(digest, Origin(run=folder, step=step_of(checkpoint)))
    origins = {}
    for folder, history in histories.items():
        found = by_digest.get(_initial_digest(folder) or "") or _recorded_origin(history)
        if found is not None and found.run in histories and found.run != folder:
            origins[folder] = found
    return origins


def _initial_digest(folder: Path) -> str | None:
    """Return the checksum of the weights that a run began from, as its checkpoints have it."""
    for checkpoint in CheckpointFolder(folder / "checkpoints").complete():
        digest: str | None = read_manifest(checkpoint)["identity"].get("initial weights")
        return digest
    return None


def _recorded_origin(history: History) -> Origin | None:
    """Return the checkpoint that a run began from by its path."""
    weights, run = history.initial_weights, history.run.init_from
    if weights is not None:
        return Origin(run=weights.parents[2].resolve(), step=step_of(weights.parent))
    return None if run is None else Origin(run=Path(run).resolve(), step=None)


def _ancestors_first(
    histories: Mapping[Path, History], origins: Mapping[Path, Origin]
) -> list[Path]:
    order: dict[Path, None] = {}

    def add(folder: Path, below: frozenset[Path]) -> None:
        origin = origins.get(folder)
        if origin is not None and origin.run not in below:
            add(origin.run, below | {folder})
        order.setdefault(folder)

    for folder in sorted(histories):
        add(folder, frozenset())
    return list(order)


def _own_samples(
    history: History,
    matches: UrlMatch,
    cache: dict[str, tuple[NDArray[np.int64], list[str]]],
) -> TouchedRun:
    """Return the matching samples of a run's own data, and the steps that were trained on them."""
    folders = history.run.data
    if not folders:  # an import
        return TouchedRun(history=history)
    try:
        shards = ShardSet([Path(folder) for folder in folders], verify=False)
        check_data(history, shards)
    except UserError as error:
        return TouchedRun(history=history, unknown=str(error))
    rows, samples, urls, first = [], {}, [], 0
    for folder in folders:
        if folder not in cache:
            cache[folder] = _matching_rows(Path(folder), matches)
        found_r, of_folder = cache[folder]
        if len(found_r):
            samples[folder] = len(found_r)
        rows.append(first + found_r)
        urls += of_folder
        first += _row_count(Path(folder))
    removed = read_removed(map(Path, folders))
    rows_r = removed.first_rows(np.concatenate(rows))
    return TouchedRun(
        history=history,
        samples=samples,
        urls=urls[:_SHOWN_URLS],
        steps=_trained_steps(history, rows_r) if len(rows_r) else (),
    )


def _row_count(folder: Path) -> int:
    return len(ShardSet([folder], verify=False))


def _matching_rows(folder: Path, matches: UrlMatch) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of a data folder with a URL that matches, and the first of these URLs."""
    rows: list[int] = []
    urls: list[str] = []
    first = 0
    for batch in ShardSet([folder], verify=False).batches(["lineage"]):
        for row, lineage in enumerate(batch["lineage"].to_pylist(), first):
            found = [url for url in urls_of(dict(lineage or ())) if matches(url)]
            if found:
                rows.append(row)
                urls += found[: _SHOWN_URLS - len(urls)]
        first += batch.num_rows
    return np.array(rows, np.int64), urls


def _trained_steps(history: History, rows_r: NDArray[np.int64]) -> list[int]:
    """Return the steps of a run that were trained on any of some rows."""
    skipped = skipped_positions(history.folder)
    steps: list[int] = []
    for part in history.parts:
        stream, _ = build_stream(part.run)
        batch = part.run.settings.global_batch
        steps += steps_with(stream, batch, rows_r, part.steps, skipped=skipped)
    return steps


def _with_checkpoints(touched: TouchedRun, origin: Origin | None) -> TouchedRun:
    """Return what is touched of a run with its touched checkpoints and the newest untouched one."""
    first = 0 if origin is not None else touched.first_step
    newest_first = CheckpointFolder(touched.history.folder / "checkpoints").complete()
    later = [path for path in newest_first if first is not None and step_of(path) >= first]
    earlier = [path for path in newest_first if path not in later]
    return TouchedRun(
        history=touched.history,
        samples=touched.samples,
        urls=touched.urls,
        steps=touched.steps,
        origin=origin,
        checkpoints=later[::-1],
        untouched=next((path for path in earlier if find_damage(path) is None), None),
        unknown=touched.unknown,
    )
