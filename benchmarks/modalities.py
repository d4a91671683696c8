"""What the digits world's presets learn of pictures, videos, sounds and clouds, and of all at once.

    python benchmarks/modalities.py [PRESET ...] [--output DIR] [--captions N] [--dialogues N]

For every preset: writes shards, trains MM-PT and MM-IT by the command line as `make quickstart`
does, and asks about held-out handwriting and telephones, with the media and without. A preset of
several modalities gets N samples of each, in half as many epochs. Prints a table and as the last
line one JSON object.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from etl.digits.faults import WorldSize
from etl.digits.shards import write_shards
from model.presets import system

PRESETS = ("digits", "digits_video", "digits_audio", "digits_points", "digits_omni")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the digits world's presets and compare their answers with blind ones."""

    presets: tyro.conf.Positional[tuple[str, ...]] = PRESETS
    """Which ones."""
    output: Path = Path("runs/modalities")
    """Where shards and runs go; runs that are there are gone on with."""
    captions: int = 6000
    """Captioned media of each modality, for MM-PT."""
    dialogues: int = 6000
    """Dialogues about each modality, for MM-IT."""
    questions: int = 600
    """Questions about each modality."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The answers of one preset about one modality; shares of exact answers, wall time in seconds.

    Args:
        kinds: the same per kind of question: with the media, without, and by always giving the
            commonest answer.
        seconds: of training both stages, all modalities together.
    """

    preset: str
    modality: str
    questions: int
    held_out: float
    blind: float
    chance: float
    kinds: dict[str, tuple[float, float, float]]
    seconds: float


def run(args: Sequence[str]) -> None:
    """Run every preset and print what came of it."""
    options = parse(Options, prog="benchmarks/modalities.py", args=args)
    rows = [row for name in options.presets for row in measure(name, options)]
    Console().print(table(rows))
    sys.stdout.write(json.dumps({"modalities": [asdict(row) for row in rows]}) + "\n")


def measure(name: str, options: Options) -> list[Row]:
    """Train one preset through both stages and ask it about each of its modalities."""
    modalities = system(name).model.modalities
    world = WorldSize(
        captions=options.captions,
        dialogues=options.dialogues,
        questions=options.questions,
        seed=0,
    )
    output = options.output.resolve()  # the commands run elsewhere
    data = output / "data"
    for modality in modalities:
        write_shards(data / modality, modality, world)
    started = time.monotonic()
    pt, sft = (output / name / stage for stage in ("pt", "sft"))
    few = len(modalities) > 1
    train("pt", name, [data / m / "captions" for m in modalities], pt, options, few=few)
    train(
        *("sft", name, [data / m / "dialogues" for m in modalities], sft, options),
        *("--init-from", pt),
        few=few,
    )
    seconds = time.monotonic() - started
    return [ask(name, m, data / m / "questions", sft, seconds) for m in modalities]


def train(
    stage: str,
    preset: str,
    data: Sequence[Path],
    output: Path,
    options: Options,
    *more: object,
    few: bool,
) -> None:
    """Train one stage under DeepSpeed."""
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--num_accelerators", options.ranks, "--log_level", "warning"]
    command += ["--module", "pipeline", stage, preset, "--data", *data, "--output", output, *more]
    if few:
        whole = system(preset).stage("pt" if stage == "pt" else "sft")
        command += ["--epochs", (whole.epochs + 1) // 2]
    call(command)


def ask(preset: str, modality: str, data: Path, run: Path, seconds: float) -> Row:
    """Evaluate a run on one modality's questions."""
    output = run / "evaluation" / modality
    command = [sys.executable, "-m", "pipeline", "evaluate", "--run", run]
    call([*command, "--data", data, "--output", output])
    scores = json.loads((output / "scores.json").read_bytes())
    return Row(
        preset=preset,
        modality=modality,
        questions=scores["questions"],
        held_out=scores["accuracy"],
        blind=scores["blind"],
        chance=scores["chance"],
        kinds={
            kind: (one["accuracy"], one["blind"], one["chance"])
            for kind, one in scores["kinds"].items()
        },
        seconds=round(seconds, 1),
    )


def call(command: Sequence[object]) -> None:
    """Run a command of ours, or end with it."""
    words = [str(word) for word in command]
    Console(stderr=True).print(f"\n$ {shlex.join(words)}", style="bold", soft_wrap=True)
    # The launcher finds this environment's tools (ninja, which compiles DeepSpeed's op).
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = subprocess.run(words, check=False, cwd=ROOT, env={**os.environ, "PATH": path}).returncode
    if code:
        raise UserError(f"{shlex.join(words)}: ended with {code}")


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table, one line a kind of question."""
    shown = Table("preset", "modality", "question", "held-out", "blind", "chance", "train, s")
    for row in rows:
        scores = (f"{share:.3f}" for share in (row.held_out, row.blind, row.chance))
        shown.add_row(row.preset, row.modality, "all", *scores, f"{row.seconds:.0f}", style="bold")
        for kind, shares in row.kinds.items():
            shown.add_row("", "", kind, *(f"{share:.3f}" for share in shares), "")
    return shown


if __name__ == "__main__":
    main(run)
