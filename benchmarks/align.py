"""`make quickstart-align` with several seeds: SFT against DRESS, DPO and GRPO, with the spread.

    python benchmarks/align.py [--seeds 0 1 2] [--output DIR]

Runs the quickstart once for each seed, in a folder of its own; a seed whose folder has a summary is
not run again. Prints a table of means and ranges, and as the last line one JSON object. About
twenty minutes a seed on two idle cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from etl.cli import main, parse
from pipeline.quickstart.align_report import NAMES
from pipeline.quickstart.align_scores import removed
from pipeline.quickstart.commands import call, python_command

FIGURES = ("held_out", "removed", "wrong_medium")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the align quickstart with several seeds."""

    output: Path = Path("runs/align")
    """Folder with one quickstart for each seed; complete ones are kept."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the data and of all stages."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


def run(args: Sequence[str]) -> None:
    """Run all seeds and print the results."""
    options = parse(Options, prog="benchmarks/align.py", args=args)
    summaries = []
    for seed in options.seeds:
        folder = options.output.resolve() / f"seed-{seed}"
        if not (folder / "summary.json").is_file():
            words = ("--output", folder, "--seed", seed, "--ranks", options.ranks)
            call(python_command("-m", "pipeline.quickstart.align", *words))
        summaries.append(json.loads((folder / "summary.json").read_bytes()))
    models = {name: of_seeds(summaries, name) for name in NAMES}
    Console().print(table(models))
    seconds = {
        name: [one[name] for one in summaries] for name in ("seconds_total", "cpu_seconds_total")
    }
    sys.stdout.write(json.dumps({"seeds": options.seeds, "models": models, **seconds}) + "\n")


def of_seeds(summaries: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Return a model's figures, one for each seed; `removed` is the share of SFT's errors."""
    held_out = [one["held_out"][name] for one in summaries]
    before = [one["held_out"]["sft"] for one in summaries]
    return {
        "held_out": held_out,
        "removed": [removed(sft, own) for sft, own in zip(before, held_out, strict=True)],
        "wrong_medium": [one["wrong_medium"][name] for one in summaries],
    }


def table(models: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """Return mean and range over the seeds of each figure."""
    printed = Table("model", "exact answers", "errors removed", "wrong-medium answers")
    for name, figures in models.items():
        texts = [
            f"{fmean(own):.1%} ({min(own):.1%} to {max(own):.1%})"
            for own in (figures[figure] for figure in FIGURES)
        ]
        printed.add_row(NAMES[name], *texts)
    return printed


if __name__ == "__main__":
    main(run)
