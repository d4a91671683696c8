"""Any-to-any on the digits toy world: `python -m pipeline.quickstart.any_to_any --output DIR`.

Serve → ETL → MM-PT → MM-IT → requests fulfilled → judged → report, with a ceiling (the frozen
generators, prompted with captions) and a floor (output projectors before their training).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import main, parse
from etl.storage.atomic import write_json
from pipeline.quickstart.any_report import print_any_summary, write_any_report
from pipeline.quickstart.bounds import with_untrained_projectors
from pipeline.quickstart.commands import (
    StageSummary,
    call,
    empty_folder,
    pipeline_command,
    python_command,
    run_etl,
    serve_world,
    train,
)

PRESET = "digits_any"
_SMALLEST = 32  # pixels: the side of pictures that are generated


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a model that answers with text, pictures, sounds and videos, and judge what it makes.

    At most a quarter of an hour on two cores.
    """

    output: Path = Path("runs/quickstart-any")
    """Folder for everything; an earlier quickstart in it is removed."""
    captions: int = 5000
    """Pairs of image and caption for MM-PT."""
    dialogues: int = 3500
    """Dialogues about images for MM-IT."""
    questions: int = 600
    """Questions about held-out handwriting."""
    requests: int = 600
    """Requests of each of six tasks for MM-IT, and captions of each kind of medium for MM-PT; a
    sixth as many requests are held out."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


def run(args: Sequence[str]) -> None:
    """Run every step; raises UserError with the command if one fails."""
    options = parse(Options, prog="python -m pipeline.quickstart.any_to_any", args=args)
    started = time.monotonic()
    out = empty_folder(options.output)
    stages = make_data(options, out)
    pt, sft, ranks = out / "pt", out / "sft", options.ranks
    data = [out / "captions", out / "generation_captions"]
    stages.append(train("pt", PRESET, data, pt, ranks=ranks))
    data = [out / "dialogues", out / "requests"]
    stages.append(train("sft", PRESET, data, sft, ranks=ranks, init_from=pt))
    summary = {
        "tasks": judged_tasks(sft, out / "held_out_requests", out),
        "understanding": understanding(sft, out / "questions"),
        "seconds_total": time.monotonic() - started,
    }
    write_json(out / "summary.json", summary)
    write_any_report(out, summary, stages)
    print_any_summary(out, summary)


def make_data(options: Options, out: Path) -> list[StageSummary]:
    """Serve the world, and let the ETL make shards of its lists in `out`."""
    names = ("captions", "dialogues", "questions", "requests")
    with serve_world(out, {name: getattr(options, name) for name in names}) as world:
        lists = ("dialogues", "questions", "generation_captions", "requests", "held_out_requests")
        small = ("--min-side", _SMALLEST)
        # On processes of this machine: to start Ray for each list would take longer than the jobs.
        job = functools.partial(run_etl, executor="local")
        return [
            job("laion", world / "laion.parquet", out / "captions"),
            *(job("instruct", world / f"{name}.json", out / name, *small) for name in lists),
        ]


def judged_tasks(run_folder: Path, requests: Path, out: Path) -> dict[str, dict[str, float]]:
    """Return, for each task, the share of replies that the judges accept, with both bounds."""
    floor_run = out / "untrained"
    with_untrained_projectors(run_folder, floor_run)
    media = out / "media"
    bounds = "pipeline.quickstart.bounds"
    commands = {
        "judged": pipeline_command("generate", "--run", run_folder),
        "ceiling": python_command("-m", bounds, "--run", run_folder),
        "floor": pipeline_command("generate", "--run", floor_run),
    }
    tasks: dict[str, dict[str, float]] = {}
    for name, command in commands.items():
        call([*command, "--data", str(requests), "--output", str(media / name)])
        for task, scores in judge_replies(requests, media / name).items():
            tasks.setdefault(task, {})[name] = scores["judged"]
    return tasks


def judge_replies(requests: Path, replies: Path) -> Mapping[str, Any]:
    """Let the judges see a folder of replies; returns their scores by task."""
    call(python_command("-m", "etl.digits.judges", "--requests", requests, "--replies", replies))
    scores: Mapping[str, Any] = json.loads((replies / "scores.json").read_bytes())
    return scores


def understanding(run_folder: Path, questions: Path) -> dict[str, float]:
    """Return the shares of exact answers to questions about held-out pictures."""
    call(pipeline_command("evaluate", "--run", run_folder, "--data", questions))
    scores = json.loads((run_folder / "evaluation" / "scores.json").read_bytes())
    return {"held_out": scores["accuracy"], "blind": scores["blind"]}


if __name__ == "__main__":
    main(run)
