"""Checkpoints: how long a step waits for one, how large it is, and how long a run takes to resume.

    python benchmarks/checkpoint.py [--ranks N] [--sizes …]

Each size is MM-IT of a small LLaVA under ZeRO-3 with adapters in a frozen backbone, or of all the
backbone's weights. Both sides save the same engine in the same processes: this trainer, which
copies and then writes beside training, frozen weights left out; and DeepSpeed's `save_checkpoint`
as it is. Then the run is resumed by fresh processes: `check` is looking at every checksum, `load`
is bringing weights, optimizer and schedule back.

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

Figures = dict[str, Any]

SIZES: Mapping[str, tuple[int, int, bool]] = {
    "adapters": (512, 4, False),
    "more adapters": (1024, 8, False),
    "backbone": (512, 4, True),
    "larger backbone": (1024, 8, True),
}
"""Width and layers of the backbone, and whether all of it trains."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare checkpoints with DeepSpeed's own, as the model grows."""

    ranks: int = 2
    saves: int = 3
    sizes: tuple[str, ...] = tuple(SIZES)
    """Which of: adapters, more adapters, backbone, larger backbone."""


def measure(name: str, options: Options, folder: Path) -> Figures:
    """Train a little, save by both ways, and resume."""
    width, layers, whole = SIZES[name]
    trains = '["inputs.image.projector.*", "backbone.*"]'
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
                *(("sft.peft=null", f"sft.trainable={trains}") if whole else ()),
            ),
        ),
        "sft",
    )
    run.save(folder)
    found: Figures = {}
    for more in ((), ("--resume",)):
        told = folder / "told.json"
        words = ("benchmarks.checkpoint_worker", folder / "config.json", "--told", told)
        run_ranks(options.ranks, [*words, "--saves", options.saves, *more])
        found |= json.loads(told.read_bytes())
    found["bytes_per_trained"] = found["bytes"] / found["trained"]
    found["stall_ratio"] = found["plain_stall_seconds"] / found["stall_seconds"]
    return found


def table(found: Mapping[str, Figures], options: Options) -> Table:
    """Return all sizes as a table."""
    title = f"Checkpoints of MM-IT under ZeRO-3, {options.ranks} ranks"
    shown = Table(title=title)
    for column in ("", "trained", "frozen", "stall s", "there after s", "MB", "bytes/trained"):
        shown.add_column(column, justify="right")
    for column in ("DeepSpeed: stall s", "MB", "resume: check s", "load s"):
        shown.add_column(column, justify="right")
    for name, row in found.items():
        shown.add_row(
            name,
            *(f"{row[part] / 1e6:.1f} M" for part in ("trained", "frozen")),
            *(f"{row[part]:.3f}" for part in ("stall_seconds", "whole_seconds")),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_per_trained']:.1f}",
            f"{row['plain_stall_seconds']:.3f}",
            f"{row['plain_bytes'] / 1e6:.1f}",
            *(f"{row[part]:.3f}" for part in ("check_seconds", "load_seconds")),
        )
    return shown


def run(args: list[str]) -> None:
    """Measure every size and print it."""
    options = parse(Options, prog="python benchmarks/checkpoint.py", args=args)
    found = {}
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, options, Path(folder))
    Console(stderr=True, width=150).print(table(found, options))
    sys.stdout.write(json.dumps({"ranks": options.ranks, "sizes": found}) + "\n")


if __name__ == "__main__":
    main(run)
