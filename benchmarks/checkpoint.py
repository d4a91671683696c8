"""Checkpoints: how long training stalls for one, its size, and how long a run takes to resume.

    python benchmarks/checkpoint.py [--ranks N] [--sizes …]

Each size is MM-IT of a small LLaVA under ZeRO-3, of adapters in a frozen backbone or of all the
backbone's weights. Both sides save the same engine in the same processes: this trainer, which
copies and then writes asynchronously, without frozen weights; and DeepSpeed's `save_checkpoint`
unchanged. Then new processes resume the run: `check` verifies every checksum, `load` restores
weights, optimizer and schedule.

Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.ranks import run_ranks
from etl.cli import main, parse
from etl.digits.records import dialogue_sample
from etl.storage.shards import write_folder
from pipeline.config.run_config import TrainOptions, resolve

Results = dict[str, Any]

SIZES: Mapping[str, tuple[int, int, bool]] = {
    "adapters": (512, 4, False),
    "more adapters": (1024, 8, False),
    "backbone": (512, 4, True),
    "larger backbone": (1024, 8, True),
}
"""Width and layers of the backbone, and whether all of it is trainable."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare checkpoints with DeepSpeed's own, as the model grows."""

    ranks: int = 2
    saves: int = 3
    sizes: tuple[str, ...] = tuple(SIZES)
    """Which of: adapters, more adapters, backbone, larger backbone."""


def measure(name: str, options: Options, folder: Path) -> Results:
    """Train two steps, save in both ways, and resume."""
    width, layers, trains_all = SIZES[name]
    trainable = '["inputs.image.projector.*", "backbone.*"]'
    run = resolve(
        TrainOptions(
            preset="llava_1_5_7b",
            scale="tiny",
            data=(
                write_folder(
                    folder / "data", (dialogue_sample(0, n) for n in range(16)), job="bench"
                ),
            ),
            output=folder / "run",
            max_steps=2,
            global_batch=4,
            micro_batch=2,
            set=(
                f"model.backbone.width={width}",
                f"model.backbone.mlp_width={width * 11 // 4}",
                f"model.backbone.layers={layers}",
                *(("sft.peft=null", f"sft.trainable={trainable}") if trains_all else ()),
            ),
        ),
        "sft",
    )
    run.save(folder)
    results: Results = {}
    for resume in ((), ("--resume",)):
        file = folder / "results.json"
        words = ("benchmarks.checkpoint_worker", folder / "config.json", "--results", file)
        run_ranks(options.ranks, [*words, "--saves", options.saves, *resume])
        results |= json.loads(file.read_bytes())
    results["bytes_per_trained"] = results["bytes"] / results["trained"]
    results["stall_ratio"] = results["deepspeed_stall_seconds"] / results["stall_seconds"]
    return results


def table(results: Mapping[str, Results], options: Options) -> Table:
    """Return the results of all sizes as a table."""
    title = f"Checkpoints of MM-IT under ZeRO-3, {options.ranks} ranks"
    printed = Table(title=title)
    for column in ("", "trained", "frozen", "stall s", "complete s", "MB", "bytes/trained"):
        printed.add_column(column, justify="right")
    for column in ("DeepSpeed: stall s", "MB", "resume: check s", "load s"):
        printed.add_column(column, justify="right")
    for name, row in results.items():
        printed.add_row(
            name,
            *(f"{row[part] / 1e6:.1f} M" for part in ("trained", "frozen")),
            *(f"{row[part]:.3f}" for part in ("stall_seconds", "complete_seconds")),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_per_trained']:.1f}",
            f"{row['deepspeed_stall_seconds']:.3f}",
            f"{row['deepspeed_bytes'] / 1e6:.1f}",
            *(f"{row[part]:.3f}" for part in ("check_seconds", "load_seconds")),
        )
    return printed


def run(args: list[str]) -> None:
    """Measure every size and print the results."""
    options = parse(Options, prog="python benchmarks/checkpoint.py", args=args)
    results = {}
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, options, Path(folder))
    Console(stderr=True, width=150).print(table(results, options))
    sys.stdout.write(json.dumps({"ranks": options.ranks, "sizes": results}) + "\n")


if __name__ == "__main__":
    main(run)
