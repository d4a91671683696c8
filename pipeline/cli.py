"""The command line: `python -m pipeline {pt,sft,features,generate,evaluate,import,export,…} …`.

Modules that import torch and DeepSpeed, which takes seconds, are imported by the commands that need
them: help, and a mistake in an option, come at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group

from etl.cli import UserError, parse
from model.presets import PRESETS
from model.spec import System
from model.spec.base import suggest
from pipeline.config.run_config import (
    PresetOptions,
    RunConfig,
    StageName,
    changed_preset,
    parse_train_options,
    resolve,
)

if TYPE_CHECKING:
    from pipeline.data.workload import DataWorkload

Command = Callable[[Sequence[str]], int]


def _prepare_libraries() -> None:
    """Make libraries quiet, before a command's module imports them.

    DeepSpeed looks for an accelerator on import. Where there is none it prints that to stdout, amid
    what `--json` prints, unless the accelerator is set.
    """
    import torch  # noqa: PLC0415

    from pipeline.compat.library_logs import quiet_libraries  # noqa: PLC0415

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    quiet_libraries()


def _command(module: str, function: str) -> Command:
    """Return a command whose module is imported when it runs."""

    def run(args: Sequence[str]) -> int:
        _prepare_libraries()
        code: int = getattr(import_module(module), function)(args)
        return code

    return run


def _train(stage: StageName) -> Command:
    def run(args: Sequence[str]) -> int:
        options = parse_train_options(stage, args)
        _prepare_libraries()
        from pipeline.train.train import train_stage  # noqa: PLC0415

        return train_stage(resolve(options, stage), options.resume)

    return run


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the presets."""

    json: bool = False
    """Print JSON instead of a table."""


def _list(args: Sequence[str]) -> int:
    options = parse(ListOptions, prog="python -m pipeline list", args=args)
    systems = [make() for make in PRESETS.values()]
    if options.json:
        _print_json([{"name": s.name, "paper": s.paper} for s in systems])
        return 0
    for line in preset_lines(systems, width=shutil.get_terminal_size().columns):
        sys.stdout.write(f"{line}\n")
    return 0


def preset_lines(systems: Sequence[System], *, width: int) -> list[str]:
    """Return one line per preset: its whole name, then as much of its summary as fits.

    The summary is the paper, the backbone's layers × width, and the modalities: input → output.
    """
    longest = max(len(item.name) for item in systems)
    lines = []
    for item in systems:
        backbone = item.model.backbone
        size = f"{backbone.kind} {backbone.layers}×{backbone.width}"
        outputs = [branch.modality for branch in item.model.outputs]
        modalities = " ".join([*item.model.modalities, *(["→", *outputs] if outputs else [])])
        line = f"{item.name:<{longest}}  {item.paper:<16}  {size:<15}  {modalities}"
        if len(line) > width:
            line = f"{line[: max(width - 1, len(item.name))].rstrip()}…"
        lines.append(line)
    return lines


@dataclass(frozen=True, kw_only=True)
class ShowOptions(PresetOptions):
    """Print a preset's resolved specification as JSON."""


def _show(args: Sequence[str]) -> int:
    options = parse(ShowOptions, prog="python -m pipeline show", args=args)
    _print_json(asdict(changed_preset(options.preset, options.scale, options.set)))
    return 0


@dataclass(frozen=True, kw_only=True)
class PlanOptions(PresetOptions):
    """Forecast parameters, memory, step time and checkpoint size of a preset; needs no weights.

    Step times are compute times, at an assumed utilization of the device's published peak FLOP/s.
    """

    stage: Literal["pt", "sft", "rlhf"]
    """The stage to plan."""
    gpus: int = 8
    """Number of GPUs."""
    micro_batch: int | None = None
    """Samples per rank and forward pass, if not the preset's."""
    data: tuple[str, ...] = ()
    """Folders of shards whose lengths are planned for; by default samples of the greatest length
    that the stage takes, each with one medium of each kind."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """With --data: `random` counts bytes in place of the backbone's tokens, and needs no hub."""
    device: str = "a100"
    """The device whose published peak FLOP/s the step time is computed with; `cpu` is this machine,
    whose ranks have everything in its memory."""
    feature_cache: bool = False
    """Whether features of frozen encoders, and generators' embeddings and latents, are cached."""
    measure: bool = False
    """Measure this machine's peak FLOP/s instead, which takes a second."""
    json: bool = False
    """Print JSON instead of tables."""


def _plan(args: Sequence[str]) -> int:
    options = parse(PlanOptions, prog="python -m pipeline plan", args=args)
    system = changed_preset(options.preset, options.scale, options.set)
    stage = system.stage(options.stage)
    if options.micro_batch is not None:
        if options.micro_batch < 1:
            raise UserError(f"--micro-batch: {options.micro_batch}, want 1 or more")
        stage = replace(stage, micro_batch=options.micro_batch)
        system = replace(system, pt=stage) if options.stage == "pt" else replace(system, sft=stage)
    _prepare_libraries()
    from pipeline.forecast import forecast, peak_flops  # noqa: PLC0415
    from pipeline.forecast.plan import plan, plan_table, sample_length  # noqa: PLC0415

    on_cpu = options.device == "cpu"
    if options.data:
        data = _data_workload(options, system)
        planned = plan(
            system,
            options.stage,
            options.gpus,
            tokens=sample_length(system, stage, data.positions),
            targets=data.targets / stage.micro_batch,
            on_cpu=on_cpu,
            with_features=options.feature_cache,
        )
    else:
        data = None
        planned = plan(
            system,
            options.stage,
            options.gpus,
            on_cpu=on_cpu,
            with_features=options.feature_cache,
        )
    peak = (
        peak_flops.measured(stage.precision, forecast.typical_product(system.model, stage))
        if options.measure or on_cpu
        else peak_flops.published(options.device, stage.precision)
    )
    average = data.average if data else None
    expected = forecast.make_forecast(
        system, options.stage, planned, peak, average, with_features=options.feature_cache
    )
    if options.json:
        _print_json(planned.to_json() | expected.to_json())
    else:
        Console().print(Group(plan_table(planned), forecast.forecast_table(expected)))
    return 0


def _data_workload(options: PlanOptions, system: System) -> DataWorkload:
    """Return the workload of the data that are planned for."""
    from pipeline.data.workload import data_workload  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:  # lengths, if the data cannot be written
        run = RunConfig(
            stage=options.stage,
            system=system,
            data=options.data,
            output=folder,
            weights="random" if options.scale == "tiny" else options.weights,
        )
        return data_workload(run, options.gpus)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


COMMANDS: Mapping[str, tuple[Command, str]] = {
    "init": (_train("init"), "pre-train a Q-Former or a P-Former, before MM-PT"),
    "pt": (_train("pt"), "align a preset's projectors on captions (MM-PT)"),
    "sft": (_train("sft"), "fine-tune on instructions (MM-IT)"),
    "rlhf": (_train("rlhf"), "align with preferences and feedback (MM-IT)"),
    "features": (
        _command("pipeline.feature_cache.precompute", "precompute"),
        "precompute the feature cache for pt --feature-cache",
    ),
    "ask": (
        _command("pipeline.evaluate.ask", "ask"),
        "ask a trained run one question about files, or without any",
    ),
    "generate": (
        _command("pipeline.generate.generate", "generate"),
        "answer prompts with text and generated media",
    ),
    "chat": (
        _command("pipeline.serve.chat", "chat"),
        "talk with a trained run in the terminal, about files or without any",
    ),
    "serve": (
        _command("pipeline.serve.serve", "serve"),
        "serve trained runs behind an OpenAI-compatible endpoint",
    ),
    "evaluate": (
        _command("pipeline.evaluate.evaluate", "evaluate"),
        "ask a trained run the questions of a data folder or a benchmark",
    ),
    "score": (
        _command("pipeline.evaluate.score", "score"),
        "a benchmark's official score of any file of predictions",
    ),
    "score-media": (
        _command("pipeline.generate.score_media", "score_media"),
        "Fréchet distances and CLIPScore of generated media",
    ),
    "import": (
        _command("pipeline.convert.import_", "import_"),
        "make a run folder from a transformers checkpoint",
    ),
    "export": (
        _command("pipeline.convert.export", "export"),
        "write a run as a transformers checkpoint, or as a self-contained folder",
    ),
    "contest": (
        _command("pipeline.contest.contest", "contest"),
        "train variants of a preset alike, and compare them in pairs",
    ),
    "show-sample": (
        _command("pipeline.train.show_sample", "show_sample"),
        "show samples as the model gets them: tokens, loss mask, positions, media",
    ),
    "trace": (
        _command("pipeline.lineage.trace", "trace"),
        "the samples of a step, and what a removal request touches",
    ),
    "compose": (
        _command("pipeline.compose", "compose_command"),
        "write a preset file for published encoders and a language model",
    ),
    "plan": (_plan, "forecast parameters, memory and step time of a preset"),
    "list": (_list, "list the presets"),
    "show": (_show, "print a preset's resolved specification, a preset file"),
}


def run(args: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    # DeepSpeed's launcher passes the local rank as an option, and in the environment, too.
    args = [arg for arg in args if not arg.startswith("--local_rank=")]
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items()]
        usage = "usage: python -m pipeline COMMAND … (each has --help)"
        sys.stdout.write("\n".join([usage, "", *lines, ""]))
        return 0
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}: {suggest(args[0], COMMANDS)}")
    return COMMANDS[args[0]][0](args[1:])
