"""ZeRO-3 against ZeRO-2 on two ranks, and the cost of the collectives contract.

    python benchmarks/zero.py [--steps N] [--mixed-steps N]

Three configurations of this trainer, with the same random weights and samples, in float32, with
equally many threads: two ranks under ZeRO-2, two under ZeRO-3, and two independent runs of one rank
each that share the machine. The ranks' extra time over the independent runs is the overhead of data
parallelism: collectives, waiting, and DeepSpeed's own work. Two models: the digits preset (MM-PT)
and the small LLaVA of `step_rate.py` (MM-IT). The losses of every step under ZeRO-2 and ZeRO-3 must
agree to `TOLERANCE`.

The contract (`pipeline/train/step_sync.py`): before a step the ranks agree on the encoders that it
needs, and a rank that lacks a medium runs a dummy at weight zero. Its cost is measured in a run
whose steps have two samples, one per rank, some with a picture and some with text of the same
length: steps in which both ranks have a picture, in which one has and the other runs a dummy, and
in which none has, so that the encoder does not run. The run's metrics say which is which.

Seconds are rank 0's wall time, the median of the steps after the warm-up; phases are the means of
`phase_seconds` in `metrics.jsonl`. Prints tables and as the last line one JSON object.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import step_rate
from benchmarks.ranks import run_ranks, run_worlds
from etl.cli import UserError, main, parse
from etl.digits.records import pair_sample
from etl.storage.schema import Sample, Turn
from etl.storage.shards import write_folder
from pipeline.convert.import_ import import_run

TOLERANCE = 1e-4
"""Maximum relative difference of a step's loss between ZeRO-2 and ZeRO-3."""

ANSWER = "two red digits stand above a blue one, and a green one moves to the left of them"
IMAGE_TOKENS = (step_rate.SIDE // 14) ** 2
RANKS = 2
STAGES = ("zero2", "zero3")
MIXED = {"both ranks have a picture": 2, "one has, one runs a dummy": 1, "none has": 0}

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare ZeRO-3 with ZeRO-2 on two ranks; measure the cost of the collectives contract."""

    steps: int = 12
    """Of each model and configuration."""
    mixed_steps: int = 32
    """Of the run whose ranks have different media."""
    warm: int = 2
    """Steps at the beginning that are not measured."""
    digits_batch: int = 64
    """Samples per step of the digits preset, in two micro-steps per rank, as `llava_batch`."""
    llava_batch: int = 8
    length: int = 768
    """The longest sample of the LLaVA, in tokens."""
    width: int = 256
    layers: int = 2
    vocabulary: int = 8_000
    keep: Path | None = None
    """Folder for data and runs. Default: a temporary one."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The measurements of one configuration after the warm-up.

    Args:
        step_seconds: of one step.
        tokens_per_second: over all ranks.
        memory_bytes: the highest peak of a rank.
        phases: seconds per phase of a step.
        losses: of all steps.
    """

    name: str
    step_seconds: float
    tokens_per_second: float
    memory_bytes: int
    phases: Mapping[str, float]
    losses: tuple[float, ...] = field(repr=False)


def side(name: str, runs: Sequence[Path], warm: int) -> Side:
    """Read the metrics of runs that ran at the same time."""
    runs_steps = [entries(run) for run in runs]
    timed = [entry for steps in runs_steps for entry in steps[warm:]]
    return Side(
        name=name,
        step_seconds=median(entry["step_seconds"] for entry in timed),
        tokens_per_second=sum(rate(steps, warm) for steps in runs_steps),
        memory_bytes=max(max(entry["memory_bytes"]) for entry in timed),
        phases=phases(timed),
        losses=tuple(entry["loss"] for entry in runs_steps[0]),
    )


def entries(run: Path) -> list[Entry]:
    """Return the metrics of a run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rate(steps: Sequence[Entry], warm: int) -> float:
    """Return the tokens per second of a run."""
    tokens: int = steps[-1]["tokens"] - steps[warm - 1]["tokens"]
    return tokens / sum(entry["step_seconds"] for entry in steps[warm:])


def phases(steps: Sequence[Entry]) -> dict[str, float]:
    """Return the mean seconds of each phase of a step."""
    names = dict.fromkeys(name for entry in steps for name in entry["phase_seconds"])
    return {name: mean(entry["phase_seconds"].get(name, 0.0) for entry in steps) for name in names}


def compare(
    name: str, words: list[object], batch: int, options: Options, folder: Path
) -> list[Side]:
    """Train one model in the three configurations."""
    common = [*words, "--micro-batch", batch // RANKS // 2, "--max-steps", options.steps]

    def alone(number: int) -> list[object]:
        own = ("--seed", number, "--output", folder / f"{name}-alone-{number}")
        return [*common, "--ds-config", "zero2", "--global-batch", batch // RANKS, *own]

    run_worlds([alone(number) for number in range(RANKS)], ranks=1)
    runs = [folder / f"{name}-alone-{number}" for number in range(RANKS)]
    sides = [side("two runs of one rank", runs, options.warm)]
    for zero in STAGES:
        run = folder / f"{name}-{zero}"
        run_ranks(RANKS, [*common, "--ds-config", zero, "--global-batch", batch, "--output", run])
        sides.append(side(zero, [run], options.warm))
    return sides


def difference(two: Side, three: Side) -> float:
    """Return the largest relative difference of the losses of two configurations.

    Raises:
        UserError: it is above `TOLERANCE`.
    """
    worst = max(abs(a - b) / abs(b) for a, b in zip(three.losses, two.losses, strict=True))
    if worst > TOLERANCE:
        raise UserError(f"losses under {two.name} and {three.name} differ by {worst:.1e}")
    return worst


def alike(count: int, *, picture: bool) -> Iterator[Sample]:
    """Yield samples of equal length, with a picture or with text instead."""
    random = np.random.default_rng(2)
    for number in range(count):
        words = "<image>" if picture else ("tell me a story " * IMAGE_TOKENS)[:IMAGE_TOKENS]
        turns = (Turn(role="user", text=words), Turn(role="assistant", text=ANSWER))
        media = (step_rate.photograph(random),) if picture else ()
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=media)


def contract(words: list[object], options: Options, folder: Path) -> dict[str, dict[str, Any]]:
    """Train with one sample per rank; return, by ZeRO stage, the cost of each kind of step."""
    results: dict[str, dict[str, Any]] = {}
    for zero in STAGES:
        run = folder / f"mixed-{zero}"
        own = ["--data", folder / "pictures", folder / "texts", "--max-steps", options.mixed_steps]
        own += ["--global-batch", RANKS, "--micro-batch", 1, "--ds-config", zero, "--output", run]
        run_ranks(RANKS, [*words, *own])
        timed = entries(run)[options.warm :]
        results[zero] = {
            kind: cost_of_steps([e for e in timed if _pictures(e) == pictures])
            for kind, pictures in MIXED.items()
        }
    return results


def cost_of_steps(steps: Sequence[Entry]) -> dict[str, Any]:
    """Return the cost of steps of one kind; raises UserError if there are none."""
    if not steps:
        raise UserError("--mixed-steps: too few, one kind of step did not occur")
    return {
        "steps": len(steps),
        "seconds": median(entry["step_seconds"] for entry in steps),
        "phases": phases(steps),
    }


def _pictures(entry: Entry) -> int:
    samples: int = entry["sources"].get("pictures", {}).get("samples", 0)
    return samples


def sides_table(name: str, sides: Sequence[Side]) -> Table:
    """Return the configurations of one model as a table."""
    printed = Table("", "s per step", "tokens/s", "MiB per rank", title=name)
    parts = ("sync", "forward", "backward", "step")
    for part in parts:
        printed.add_column(f"{part}, s")
    for one in sides:
        figures = [f"{one.step_seconds:.3f}", f"{one.tokens_per_second:.0f}"]
        figures += [f"{one.memory_bytes / 2**20:.0f}"]
        printed.add_row(one.name, *figures, *(f"{one.phases[part]:.3f}" for part in parts))
    return printed


def contract_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the cost of each kind of step as a table."""
    printed = Table("", title="One sample per rank")
    for zero in results:
        printed.add_column(f"{zero}: steps, s per step, sync, forward")
    for kind in MIXED:
        cells = [
            f"{f['steps']}, {f['seconds']:.3f}, {f['phases']['sync']:.3f},"
            f" {f['phases']['forward']:.3f}"
            for f in (results[zero][kind] for zero in results)
        ]
        printed.add_row(kind, *cells)
    return printed


def write_data(options: Options, folder: Path) -> None:
    """Write the data of the runs, and the LLaVA."""
    captions = (pair_sample(0, number) for number in range(options.steps * options.digits_batch))
    write_folder(folder / "captions", captions, job="bench")
    dialogues = step_rate.samples(options.steps * options.llava_batch, options.length)
    write_folder(folder / "dialogues", dialogues, job="bench")
    mixed = options.mixed_steps
    write_folder(folder / "pictures", alike(mixed, picture=True), job="bench")
    write_folder(folder / "texts", alike(mixed, picture=False), job="bench")
    small = step_rate.Options(
        length=options.length,
        width=options.width,
        layers=options.layers,
        vocabulary=options.vocabulary,
    )
    step_rate.checkpoint(small, folder / "llava")
    import_run(folder / "llava", folder / "imported", "sft")


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Run everything; print the tables and return the results."""
    write_data(options, folder)
    console = Console(stderr=True, width=110)
    common = ["--precision", "fp32", "--save-every", 10**9, "--epochs", 1]
    digits = ["pipeline", "pt", "digits", "--weights", "random", *common]
    imported = folder / "imported"
    llava = ["pipeline", "sft", imported / "config.json", "--init-from", imported, *common]
    llava += ["--set", "sft.recompute=false", f"sft.max_tokens={options.length}"]
    models: dict[str, tuple[list[object], int]] = {
        "digits": ([*digits, "--data", folder / "captions"], options.digits_batch),
        "llava": ([*llava, "--data", folder / "dialogues"], options.llava_batch),
    }
    figures: dict[str, Any] = {}
    for name, (words, batch) in models.items():
        independent, two, three = sides = compare(name, words, batch, options, folder)
        console.print(sides_table(name, sides))
        figures[name] = {
            "sides": [asdict(one) for one in sides],
            "zero3_to_zero2": three.step_seconds / two.step_seconds,
            "parallel_overhead": {
                one.name: 1 - one.tokens_per_second / independent.tokens_per_second
                for one in (two, three)
            },
            "sync_share": {one.name: one.phases["sync"] / one.step_seconds for one in (two, three)},
            "largest_difference_of_losses": difference(two, three),
        }
    figures["contract"] = contract(llava, options, folder)
    console.print(contract_table(figures["contract"]))
    return figures


def run(args: list[str]) -> None:
    """Measure and print the results."""
    options = parse(Options, prog="python benchmarks/zero.py", args=args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        figures = measure(options, folder)
    figures["options"] = asdict(options) | {"keep": str(options.keep)}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(run)
