"""`python -m pipeline trace`: the samples of a step, and what a removal request touches."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from etl.cli import UserError, parse
from pipeline.lineage.continuation import Continuation, continuation
from pipeline.lineage.history import read_history
from pipeline.lineage.removal import TouchedRun, find_runs, touched_runs
from pipeline.lineage.step_samples import TracedStep, trace_step


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Name the samples of a step of a run, or all that a removal request touches.

    With --run and --step: who had which sample, its URLs, the hashes of its media and its scores.
    With --drop: the steps, checkpoints and runs that were trained on samples with such a URL, those
    that began from them included, and the newest checkpoint that was not.
    """

    run: Path | None = None
    """The run folder. With --drop, runs next to it that began from it are looked at, too."""
    step: int | None = None
    """The step, counted from 1."""
    drop: tuple[str, ...] = ()
    """Patterns of URLs to be removed, in which * is any text, such as 'https://example.org/*'. They
    are compared with the URLs, files and pages of samples."""
    runs: Path | None = None
    """With --drop: a folder whose runs are all looked at. Default: the folder that has --run."""
    filtered: Path | None = None
    """With --drop: write the data without the matching samples to this folder, and print the
    commands that continue the touched runs on them."""
    resume: bool = False
    """With --filtered: run these commands, too."""
    json: bool = False
    """Print JSON instead of tables."""


def trace(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(TraceOptions, prog="python -m pipeline trace", args=args)
    if (options.step is None) == (not options.drop):
        raise UserError("want either --step, for the samples of a step, or --drop, for a removal")
    if options.step is not None:
        if options.run is None:
            raise UserError("--step: want --run, too")
        _print_step(trace_step(read_history(options.run), options.step), as_json=options.json)
        return 0
    if options.resume and options.filtered is None:
        raise UserError("--resume: want --filtered, the folder for the data to resume on")
    touched = _touched(options)
    plan = None
    if options.filtered is not None:
        plan = continuation(touched, options.drop, options.filtered)
        _call(plan.filters)
    if options.json:
        value = {"runs": [_to_json(one) for one in touched]}
        sys.stdout.write(json.dumps(value | (asdict(plan) if plan else {}), indent=2) + "\n")
    else:
        _print_touched(touched, plan, resume=options.resume)
    if plan is not None and options.resume:
        _call(plan.trainings)
    return 0


def _touched(options: TraceOptions) -> list[TouchedRun]:
    if options.run is None and options.runs is None:
        raise UserError("--drop: want --run, or --runs for all runs in a folder")
    folder = options.runs
    if folder is None:
        assert options.run is not None
        read_history(options.run)  # its mistakes come first
        folder = options.run.resolve().parent
    touched = touched_runs(find_runs(folder), options.drop)
    if options.run is not None:
        touched = _related(touched, options.run.resolve())
    if not touched:
        raise UserError(
            f"--drop {' '.join(options.drop)}: no sample of these runs has such a URL; a pattern "
            "stands for the whole URL, as in 'https://example.org/*' or '*example.org*'"
        )
    return touched


def _related(touched: Sequence[TouchedRun], run: Path) -> list[TouchedRun]:
    """Return a run, those that it began from, and those that began from it."""
    origins = {
        one.history.folder.resolve(): one.origin.run for one in touched if one.origin is not None
    }

    def line(folder: Path) -> Iterator[Path]:
        yield folder
        if folder in origins:
            yield from line(origins[folder])

    wanted = set(line(run))
    return [
        one
        for one in touched
        if (folder := one.history.folder.resolve()) in wanted or run in line(folder)
    ]


def _call(commands: Sequence[Sequence[str]]) -> None:
    """Run commands one after the other; raises UserError with the one that fails.

    What they print goes to stderr: stdout has the result of `trace`.
    """
    for command in commands:
        Console(stderr=True).print(f"$ {shlex.join(command)}", style="bold", soft_wrap=True)
        code = subprocess.run(command, check=False, stdout=2).returncode
        if code:
            raise UserError(f"{shlex.join(command)}: exit code {code}")


def _print_step(traced: TracedStep, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(traced), indent=2) + "\n")
        return
    lines = [
        f"{traced.run}, step {traced.step}: {len(traced.samples)} samples, {traced.ranks} ranks"
        + ("; not finite, so that no weight has changed" if traced.applied is False else "")
    ]
    for sample in traced.samples:
        scores = (f"{name}={value:.4g}" for name, value in sample.scores.items())
        words = [
            f"rank {sample.rank} micro-step {sample.micro_step}",
            sample.id,
            f"{Path(sample.folder, sample.shard)}:{sample.row}",
            *sample.urls,
            *(f"sha256:{medium['sha256'][:16]}" for medium in sample.media),
            *scores,
            *([f"skipped: {sample.skip_reason}"] if sample.skip_reason else []),
        ]
        lines.append("  ".join(words))
    sys.stdout.write("\n".join(lines) + "\n")


def _to_json(one: TouchedRun) -> dict[str, Any]:
    origin = one.origin
    return {
        "run": str(one.history.folder),
        "began_from": None if origin is None else {"run": str(origin.run), "step": origin.step},
        "samples": one.samples,
        "urls": list(one.urls),
        "steps": list(one.steps),
        "checkpoints": [str(path) for path in one.checkpoints],
        "untouched": None if one.untouched is None else str(one.untouched),
        "unknown": one.unknown,
    }


def _print_touched(
    touched: Sequence[TouchedRun], plan: Continuation | None, *, resume: bool
) -> None:
    run = Column("run", overflow="fold")  # the end of a path tells runs apart
    table = Table(run, "samples", "steps", "touched checkpoints", "newest untouched")
    for one in touched:
        name = str(one.history.folder)
        if one.origin is not None:
            name += f"\nbegan from {one.origin.run.name}"
        untouched = "none" if one.untouched is None else one.untouched.name
        table.add_row(
            name,
            one.unknown or f"{sum(one.samples.values()):,}",
            _spans(one.steps),
            " ".join(path.name for path in one.checkpoints) or "none",
            untouched,
        )
    console = Console()
    console.print(table)
    if plan is not None:
        for command in () if resume else plan.trainings:
            console.print(shlex.join(command), soft_wrap=True)
        stale = shlex.join(plan.stale)
        console.print(f"To delete once that is done: {stale}", soft_wrap=True)
        for cache in sorted({str(one.history.run.feature_cache) for one in touched} - {"None"}):
            console.print(f"Features of the removed media are still in {cache}", soft_wrap=True)


def _spans(steps: Sequence[int]) -> str:
    """Return steps in words: `3 5-8`."""
    groups = groupby(enumerate(steps), lambda pair: pair[1] - pair[0])
    spans = ([step for _, step in group] for _, group in groups)
    return " ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans) or "none"
