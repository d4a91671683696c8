"""`python -m pipeline contest`: train variants of a preset alike, and compare them in pairs.

    OUTPUT/variants/NAME.json   the configuration of a variant's run
    OUTPUT/features/            the feature cache that all of them share
    OUTPUT/NAME/                its run folder, with its answers
    OUTPUT/contest.json, report.html

Every step is a command that a user could type, and resumes by itself: so does the contest.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from etl.cli import UserError, parse
from etl.storage.atomic import write_json
from model.spec import SpecError
from pipeline.config.run_config import (
    PresetOptions,
    RunConfig,
    RunOptions,
    StageOptions,
    TrainOptions,
    default_options,
    resolve,
)
from pipeline.contest.compare import compare, read_result, read_scores
from pipeline.contest.report import contest_tables, write_contest_page
from pipeline.contest.variants import Variant, check_same_samples, read_variants
from pipeline.quickstart.commands import call, deepspeed_command, pipeline_command


@dataclass(frozen=True, kw_only=True)
class ContestOptions(StageOptions, RunOptions, PresetOptions):
    """Train variants of a preset on the same samples in the same steps, and compare them in pairs.

    All options of training hold for every variant. The same command resumes a stopped contest.
    """

    vary: tuple[str, ...] = ()
    """A variant each: PATH=JSON as in --set, several of them with `; ` between, and a name if you
    like, as in 'wide:model.inputs.image.projector.depth=3'. The preset as it is takes part, too."""
    stage: Literal["pt", "sft"] = "pt"
    """The stage to train."""
    questions: tuple[Path, ...] = ()
    """Folders of shards with questions that every variant answers after training."""
    ranks: int = 1
    """Ranks of each training, on this machine."""
    share_features: bool = True
    """Encode each medium once, for all variants with the same frozen encoders; not for stages that
    train their encoders."""
    resamples: int = 1000
    """Of the bootstrap."""
    json: bool = False
    """Print JSON instead of tables."""


def contest(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = _parse(args)
    variants = read_variants(options.vary)
    output = Path(options.output)
    runs = {one.name: _run(options, one, output) for one in variants}
    check_same_samples(runs)
    configs = {name: output / "variants" / f"{name}.json" for name in runs}
    for name, run in runs.items():
        write_json(configs[name], asdict(run))
    # A request to stop that only this process gets is for the command that it runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for command in _commands(options, runs, configs):
        # What a command prints is not JSON.
        call(command, stdout=sys.stderr if options.json else None)
    scores = [
        read_scores(Path(run.output), answered=bool(options.questions)) for run in runs.values()
    ]
    results = [
        read_result(one.name, one.settings, Path(runs[one.name].output), found)
        for one, found in zip(variants, scores, strict=True)
    ]
    differences = compare(results, scores, resamples=options.resamples)
    value = {
        "variants": [asdict(one) for one in results],
        "differences": [asdict(one) for one in differences],
    }
    write_json(output / "contest.json", value)
    write_contest_page(output / "report.html", results, differences)
    if options.json:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        Console().print(*contest_tables(results, differences), f"report: {output / 'report.html'}")
    return 0


def _parse(args: Sequence[str]) -> ContestOptions:
    """Read the command line; the values of the preset, or of its file, are the defaults."""
    prog = "python -m pipeline contest"
    chosen = parse(ContestOptions, prog=prog, args=args)
    default = default_options(chosen, chosen.stage, part=None)
    own = {field.name: getattr(default, field.name) for field in fields(default)}
    del own["resume"]
    options = parse(ContestOptions, prog=prog, args=args, default=replace(chosen, **own))
    # Only what was given: the stage's own values may be what varies.
    given = {field.name: getattr(chosen, field.name) for field in fields(StageOptions)}
    options = replace(options, **given)
    if options.resamples < 1 or options.ranks < 1:
        raise UserError("--resamples, --ranks: want 1 or more")
    return options


def _run(options: ContestOptions, variant: Variant, output: Path) -> RunConfig:
    """Return the configuration of a variant's run; reads nothing but the preset.

    Raises:
        UserError, SpecError: a setting that does not fit.
    """
    names = {field.name for field in fields(TrainOptions)} - {"resume"}
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    given |= {
        "set": (*options.set, *variant.settings),
        "output": str(output / variant.name) if options.output else "",
    }
    if options.share_features and options.feature_cache is None:
        given["feature_cache"] = str(output / "features")
    try:
        return resolve(TrainOptions(**given), options.stage)
    except (UserError, SpecError) as error:
        if not variant.settings:
            raise
        raise UserError(f"--vary {variant.name}: {str(error).removeprefix('--set ')}") from None


def _commands(
    options: ContestOptions, runs: Mapping[str, RunConfig], configs: Mapping[str, Path]
) -> Iterator[list[str]]:
    """Yield the commands that encode the media, and that train and question each variant."""
    if options.share_features:
        yield from _feature_commands(runs, configs)
    for name, run in runs.items():
        yield deepspeed_command(options.ranks, run.stage, configs[name])
        if options.questions:
            yield pipeline_command("evaluate", "--run", run.output, "--data", *options.questions)


def _feature_commands(
    runs: Mapping[str, RunConfig], configs: Mapping[str, Path]
) -> Iterator[list[str]]:
    """Yield a command for all variants with the same encoders and output branches."""
    seen: list[object] = []
    for name, run in runs.items():
        model = run.system.model
        needs = ([branch.encoder for branch in model.inputs], model.outputs, run.settings.precision)
        if needs in seen:
            continue
        seen.append(needs)
        cache = str(run.feature_cache)
        yield pipeline_command("features", configs[name], "--stage", run.stage, "--output", cache)
