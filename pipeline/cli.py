"""The command line: `python -m pipeline {pt,sft,features,evaluate,import,export,plan,…} …`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Literal

import tyro
from rich.console import Console, Group
from rich.table import Table

from etl.cli import UserError, parse
from model.presets import PRESETS
from pipeline.config.run_config import Scale, StageName, TrainOptions, changed_preset, resolve
from pipeline.convert.export import export
from pipeline.convert.import_ import import_
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.score import score
from pipeline.forecast.forecast import forecast_table, make_forecast, typical_product
from pipeline.forecast.peak_flops import measured, published
from pipeline.forecast.plan import plan, plan_table


def _train(stage: StageName) -> Callable[[Sequence[str]], int]:
    def run(args: Sequence[str]) -> int:
        options = parse(TrainOptions, prog=f"python -m pipeline {stage}", args=args)
        # DeepSpeed takes seconds to import, which no other command needs.
        from pipeline.train.train import train_stage  # noqa: PLC0415

        return train_stage(resolve(options, stage), options.resume)

    return run


def _features(args: Sequence[str]) -> int:
    # Ray takes a second to import, which no other command needs.
    from pipeline.feature_cache.precompute import precompute  # noqa: PLC0415

    return precompute(args)


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
    table = Table("preset", "way in", "backbone", "paper")
    for item in systems:
        backbone = item.model.backbone
        table.add_row(
            item.name,
            "\n".join(
                f"{slot.modality}: {slot.encoder.kind} → {slot.projector.kind}"
                for slot in item.model.inputs
            ),
            f"{backbone.kind} {backbone.layers}×{backbone.width}",
            item.paper,
        )
    Console().print(table)
    return 0


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Print a preset's resolved specification as JSON."""

    preset: tyro.conf.Positional[str]
    """A preset's name."""
    scale: Scale = "full"
    """`tiny`: the same classes and wiring with small sizes."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them."""


def _show(args: Sequence[str]) -> int:
    options = parse(ShowOptions, prog="python -m pipeline show", args=args)
    _print_json(asdict(changed_preset(options.preset, options.scale, options.set)))
    return 0


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Predict parameters, memory, time and checkpoints of a preset at full size; needs no weights.

    Step times are those of computing alone, at an assumed share of the device's published peak.
    """

    preset: tyro.conf.Positional[str]
    """A preset's name."""
    scale: Scale = "full"
    """`tiny`: the same classes and wiring with small sizes."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them."""
    stage: Literal["pt", "sft"]
    """Which stage is planned."""
    gpus: int = 8
    """Over how many GPUs the stage is spread."""
    device: str = "a100"
    """Whose published peak the step's time is reckoned with."""
    measure: bool = False
    """Reckon with how fast this machine multiplies matrices instead, which takes a second."""
    json: bool = False
    """Print JSON instead of tables."""


def _plan(args: Sequence[str]) -> int:
    options = parse(PlanOptions, prog="python -m pipeline plan", args=args)
    system = changed_preset(options.preset, options.scale, options.set)
    stage = system.stage(options.stage)
    planned = plan(system, options.stage, options.gpus)
    rate = (
        measured(stage.precision, typical_product(system.model, stage))
        if options.measure
        else published(options.device, stage.precision)
    )
    outlook = make_forecast(system, options.stage, planned, rate)
    if options.json:
        _print_json(planned.to_json() | outlook.to_json())
    else:
        Console().print(Group(plan_table(planned), forecast_table(outlook)))
    return 0


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "init": (_train("init"), "pre-train a Q-Former or P-Former by itself, before MM-PT"),
    "pt": (_train("pt"), "align a preset's projectors on captions (MM-PT)"),
    "sft": (_train("sft"), "fine-tune on instructions (MM-IT)"),
    "features": (_features, "encode each medium of the data once, for pt --features (on Ray)"),
    "evaluate": (evaluate, "ask a trained run the questions of a data folder or a benchmark"),
    "score": (score, "a benchmark's official score of any file of predictions"),
    "import": (import_, "a run folder from a transformers checkpoint"),
    "export": (export, "a transformers checkpoint from such a run, trained or not"),
    "plan": (_plan, "parameters, memory, time and tokens of a preset at full size"),
    "list": (_list, "the presets"),
    "show": (_show, "a preset's resolved specification"),
}


def run(args: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    # DeepSpeed's launcher gives every rank its number as an option, and in the environment too.
    args = [arg for arg in args if not arg.startswith("--local_rank=")]
    logging.getLogger("transformers").setLevel(logging.WARNING)
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
        usage = "usage: python -m pipeline COMMAND … (each has --help)"
        sys.stdout.write("\n".join([usage, "", *lines, ""]))
        return 0
    if args[0] not in COMMANDS:
        near = get_close_matches(args[0], list(COMMANDS), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {args[0]!r}: {hint}")
    return COMMANDS[args[0]][0](args[1:])
