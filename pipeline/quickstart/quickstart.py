"""The whole system on the digits toy world: `python -m pipeline.quickstart --output DIR`.

Serve → ETL → MM-PT → MM-IT (killed once, and resumed) → evaluation → report. Every step is a
command that a user could type; this module runs them one after the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from etl.cli import parse
from etl.storage.atomic import write_json
from pipeline.quickstart.commands import (
    StageSummary,
    call,
    empty_folder,
    pipeline_command,
    run_etl,
    serve_world,
    train,
)
from pipeline.quickstart.report import print_summary, write_quickstart_report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the whole system once on the digits toy world; about ten minutes on two cores."""

    output: Path = Path("runs/quickstart")
    """Folder for everything; an earlier quickstart in it is removed."""
    captions: int = 6000
    """Pairs of image and caption for MM-PT."""
    dialogues: int = 6000
    """Dialogues about images for MM-IT."""
    questions: int = 1200
    """Questions about held-out handwriting."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


def run(args: Sequence[str]) -> None:
    """Run every step; raises UserError with the command if one fails."""
    options = parse(Options, prog="python -m pipeline.quickstart", args=args)
    started = time.monotonic()
    out = empty_folder(options.output)
    sizes = {name: getattr(options, name) for name in ("captions", "dialogues", "questions")}
    with serve_world(out, sizes) as world:
        stages = [
            run_etl("laion", world / "laion.parquet", out / "captions"),
            run_etl("instruct", world / "dialogues.json", out / "dialogues"),
            run_etl("instruct", world / "questions.json", out / "questions"),
        ]
    ranks, pt, sft = options.ranks, out / "pt", out / "sft"
    stages.append(train("pt", "digits", [out / "captions"], pt, ranks=ranks))
    data = [out / "dialogues"]
    stages.append(train("sft", "digits", data, sft, ranks=ranks, init_from=pt, crash=True))
    before = time.monotonic()
    call(pipeline_command("evaluate", "--run", out / "sft", "--data", out / "questions"))
    scores = json.loads((out / "sft" / "evaluation" / "scores.json").read_bytes())
    stages.append(
        StageSummary(
            name="evaluate", samples=scores["questions"], seconds=time.monotonic() - before
        )
    )
    summary = {
        "stages": [asdict(stage) for stage in stages],
        "accuracy": {
            "held_out": scores["accuracy"],
            "blind": scores["blind"],
            "chance": scores["chance"],
        },
        "seconds_total": time.monotonic() - started,
    }
    write_json(out / "summary.json", summary)
    write_quickstart_report(out, summary)
    print_summary(out, summary)
