"""Forecast against actual memory of a rank, on one, two and four ranks; and DPO's against SFT's.

    python benchmarks/memory.py [--ranks 1 2 4] [--steps N]
    python benchmarks/memory.py --stages sft rlhf --ranks 2 --precision fp32

Trains LoRA on a backbone of some 45 million parameters and the preset's projector in bfloat16 under
ZeRO-3, MM-IT of the digits preset with a wide and deep random backbone, and compares what `plan`
forecasts for a rank with its highest peak, as the run itself records them (`RUN/forecast.json`).
On CPUs the actual figure is the growth of the process over what it held before the model was built.
The stage `rlhf` is DPO with as many answers in a micro-batch as SFT has: half as many pairs. Prints
a table and as the last line one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.ranks import run_ranks
from etl.cli import UserError, main, parse
from etl.digits.records import question_sample
from etl.storage.schema import Sample, Turn
from etl.storage.shards import write_folder

SIZES = {
    **{"width": 640, "mlp_width": 1920, "layers": 8, "heads": 10, "kv_heads": 10},
    "max_positions": 512,
}
"""Of the backbone: 43 million parameters in its layers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the forecast of a rank's memory with its peak."""

    ranks: tuple[int, ...] = (1, 2, 4)
    steps: int = 3
    micro_batch: int = 2
    """CPUs without instructions for bfloat16 take seconds for a token."""
    precision: str = "bf16"
    stages: tuple[Literal["sft", "rlhf"], ...] = ("sft",)


def samples(options: Options, count: int) -> Iterator[Sample]:
    """Yield questions, with a rejected answer where the data are for RLHF, too."""
    rejected = (Turn(role="assistant", text="I do not know."),)
    for number in range(count):
        sample = question_sample(0, number)
        yield replace(sample, rejected=rejected) if "rlhf" in options.stages else sample


def measure(stage: str, ranks: int, options: Options, data: Path, run: Path) -> dict[str, Any]:
    """Train for a few steps; returns the forecast and the actual MiB of a rank.

    Raises:
        UserError: a rank failed.
    """
    sizes = [f"model.backbone.{name}={value}" for name, value in SIZES.items()]
    micro_batch = options.micro_batch // 2 if stage == "rlhf" else options.micro_batch
    words = ["pipeline", stage, "digits", "--weights", "random", "--set", *sizes]
    words += ["--data", data, "--output", run, "--precision", options.precision]
    words += ["--max-steps", options.steps, "--micro-batch", micro_batch]
    words += ["--global-batch", micro_batch * ranks, "--ds-config", "zero3"]
    run_ranks(ranks, words)
    rows = json.loads((run / "forecast.json").read_bytes())["rows"]
    (found,) = [row for row in rows if row["quantity"] == "memory per rank"]
    return {
        "stage": stage,
        "ranks": ranks,
        "forecast_mib": round(found["forecast"]),
        "actual_mib": round(found["actual"]),
        "ratio": round(found["forecast"] / found["actual"], 3),
    }


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print the table, and as the last line the JSON object."""
    table = Table("stage", "ranks", "forecast, MiB", "actual, MiB", "forecast / actual")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps({"memory": list(found)}))


def run(args: Sequence[str]) -> None:
    """Run the benchmark with command-line arguments."""
    options = parse(Options, prog="python benchmarks/memory.py", args=args)
    if not options.ranks or min(options.ranks) < 1:
        raise UserError("--ranks: want numbers of ranks, each 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        rows = options.steps * options.micro_batch * max(options.ranks)
        data = Path(folder) / "data"
        write_folder(data, list(samples(options, rows)), job="memory")
        found = [
            measure(stage, ranks, options, data, Path(folder) / f"{stage}-{ranks}")
            for stage in options.stages
            for ranks in options.ranks
        ]
    show(found)


if __name__ == "__main__":
    main(run)
