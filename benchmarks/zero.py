"""ZeRO-3 against ZeRO-2 on two ranks, and what the collectives contract costs.

    python benchmarks/zero.py [--steps N] [--mixed-steps N]

Three ways of training, each the trainer's own on the same random weights and samples, in float32,
with as many threads: two ranks under ZeRO-2, two under ZeRO-3, and two runs of one rank each that
do not know of one another and share the machine. What the ranks take longer than those is what they
spend on each other: collectives, waiting, and what DeepSpeed does around them. Two models: the
digits preset (MM-PT) and the small LLaVA of `step_rate.py` (MM-IT). Under ZeRO-2 and ZeRO-3 the
losses of every step must be equal to `TOLERANCE`.

The contract (`pipeline/train/step_sync.py`): before a step the ranks agree on which towers it
needs, and who lacks a medium runs a blank one at weight zero. Its costs are read off one run of
steps of two samples, one a rank, of which some have a picture and some have text of the same
length: a step in which both ranks have a picture, in which one has and the other runs the blank,
and in which nobody has one, so that the tower rests. The records of the run tell which is which.

Seconds are rank 0's wall time, the median of the steps after the warm ones; phases are those of
`phase_seconds` in `metrics.jsonl`, the mean. Prints tables and as the last line one JSON object.
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
"""The largest relative difference of a step's loss between ZeRO-2 and ZeRO-3."""

ANSWER = "two red digits stand above a blue one, and a green one moves to the left of them"
PLACES = (step_rate.SIDE // 14) ** 2
RANKS = 2
STAGES = ("zero2", "zero3")
MIXED = {"both ranks have a picture": 2, "one has, one runs a blank": 1, "nobody has": 0}

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare ZeRO-3 with ZeRO-2 at two ranks; measure the collectives contract."""

    steps: int = 12
    """Of each model under each stage."""
    mixed_steps: int = 32
    """Of the run whose ranks have other media."""
    warm: int = 2
    """Steps that are left out at the beginning."""
    digits_batch: int = 64
    """Samples of a step of the digits preset, in two passes a rank; so with the LLaVA."""
    llava_batch: int = 8
    length: int = 768
    """The longest sample of the LLaVA, in tokens."""
    width: int = 256
    layers: int = 2
    vocabulary: int = 8_000
    keep: Path | None = None
    """Where data and runs stay; a folder that goes away if not given."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one way of training did after the warm steps.

    Args:
        step_seconds: of one step.
        tokens_per_second: of all ranks together.
        memory_bytes: the highest peak of a rank.
        phases: seconds of a step by what they were spent on.
        losses: of all steps.
    """

    name: str
    step_seconds: float
    tokens_per_second: float
    memory_bytes: int
    phases: Mapping[str, float]
    losses: tuple[float, ...] = field(repr=False)


def side(name: str, runs: Sequence[Path], warm: int) -> Side:
    """Read what runs that went on at the same time have recorded."""
    whole = [entries(run) for run in runs]
    timed = [entry for steps in whole for entry in steps[warm:]]
    return Side(
        name=name,
        step_seconds=median(entry["step_seconds"] for entry in timed),
        tokens_per_second=sum(rate(steps, warm) for steps in whole),
        memory_bytes=max(max(entry["memory_bytes"]) for entry in timed),
        phases=phases(timed),
        losses=tuple(entry["loss"] for entry in whole[0]),
    )


def entries(run: Path) -> list[Entry]:
    """Return the figures of a run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rate(steps: Sequence[Entry], warm: int) -> float:
    """Return the tokens a second of a run."""
    tokens: int = steps[-1]["tokens"] - steps[warm - 1]["tokens"]
    return tokens / sum(entry["step_seconds"] for entry in steps[warm:])


def phases(steps: Sequence[Entry]) -> dict[str, float]:
    """Return the mean seconds of each phase of a step."""
    names = dict.fromkeys(name for entry in steps for name in entry["phase_seconds"])
    return {name: mean(entry["phase_seconds"].get(name, 0.0) for entry in steps) for name in names}


def compare(
    name: str, words: list[object], batch: int, options: Options, folder: Path
) -> list[Side]:
    """Train one model in the three ways."""
    common = [*words, "--micro-batch", batch // RANKS // 2, "--max-steps", options.steps]

    def alone(number: int) -> list[object]:
        place = ("--seed", number, "--output", folder / f"{name}-alone-{number}")
        return [*common, "--ds-config", "zero2", "--global-batch", batch // RANKS, *place]

    run_worlds([alone(number) for number in range(RANKS)], ranks=1)
    runs = [folder / f"{name}-alone-{number}" for number in range(RANKS)]
    sides = [side("two runs of one rank", runs, options.warm)]
    for zero in STAGES:
        run = folder / f"{name}-{zero}"
        run_ranks(RANKS, [*common, "--ds-config", zero, "--global-batch", batch, "--output", run])
        sides.append(side(zero, [run], options.warm))
    return sides


def difference(two: Side, three: Side) -> float:
    """Return the largest relative difference of the losses of two sides.

    Raises:
        UserError: it is above `TOLERANCE`.
    """
    worst = max(abs(a - b) / abs(b) for a, b in zip(three.losses, two.losses, strict=True))
    if worst > TOLERANCE:
        raise UserError(f"losses under {two.name} and {three.name} differ by {worst:.1e}")
    return worst


def alike(count: int, *, picture: bool) -> Iterator[Sample]:
    """Yield samples of one length, with a picture or with text in its place."""
    random = np.random.default_rng(2)
    for number in range(count):
        words = "<image>" if picture else ("tell me a story " * PLACES)[:PLACES]
        turns = (Turn(role="user", text=words), Turn(role="assistant", text=ANSWER))
        media = (step_rate.photograph(random),) if picture else ()
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=media)


def contract(words: list[object], options: Options, folder: Path) -> dict[str, dict[str, Any]]:
    """Train on steps of one sample a rank; return by stage what steps of each kind take."""
    found: dict[str, dict[str, Any]] = {}
    for zero in STAGES:
        run = folder / f"mixed-{zero}"
        own = ["--data", folder / "pictures", folder / "texts", "--max-steps", options.mixed_steps]
        own += ["--global-batch", RANKS, "--micro-batch", 1, "--ds-config", zero, "--output", run]
        run_ranks(RANKS, [*words, *own])
        timed = entries(run)[options.warm :]
        found[zero] = {
            kind: kinds_of_step([e for e in timed if _pictures(e) == pictures])
            for kind, pictures in MIXED.items()
        }
    return found


def kinds_of_step(steps: Sequence[Entry]) -> dict[str, Any]:
    """Return what steps of one kind take; raises UserError where there are none."""
    if not steps:
        raise UserError("--mixed-steps: too few, a kind of step did not come")
    return {
        "steps": len(steps),
        "seconds": median(entry["step_seconds"] for entry in steps),
        "phases": phases(steps),
    }


def _pictures(entry: Entry) -> int:
    found: int = entry["sources"].get("pictures", {}).get("samples", 0)
    return found


def sides_table(name: str, sides: Sequence[Side]) -> Table:
    """Return one model's ways of training as a table."""
    shown = Table("", "s a step", "tokens/s", "MiB a rank", title=name)
    parts = ("agree", "forward", "backward", "step")
    for part in parts:
        shown.add_column(f"{part}, s")
    for one in sides:
        figures = [f"{one.step_seconds:.3f}", f"{one.tokens_per_second:.0f}"]
        figures += [f"{one.memory_bytes / 2**20:.0f}"]
        shown.add_row(one.name, *figures, *(f"{one.phases[part]:.3f}" for part in parts))
    return shown


def contract_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the steps by what the ranks had."""
    shown = Table("", title="One sample a rank")
    for zero in found:
        shown.add_column(f"{zero}: steps, s a step, agree, forward")
    for kind in MIXED:
        cells = [
            f"{f['steps']}, {f['seconds']:.3f}, {f['phases']['agree']:.3f},"
            f" {f['phases']['forward']:.3f}"
            for f in (found[zero][kind] for zero in found)
        ]
        shown.add_row(kind, *cells)
    return shown


def write_data(options: Options, folder: Path) -> None:
    """Write what the runs train on, and the LLaVA."""
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
    """Run everything; print the tables and return the figures."""
    write_data(options, folder)
    console = Console(stderr=True, width=110)
    always = ["--precision", "fp32", "--save-every", 10**9, "--epochs", 1]
    digits = ["pipeline", "pt", "digits", "--weights", "random", *always]
    imported = folder / "imported"
    llava = ["pipeline", "sft", imported / "config.json", "--init-from", imported, *always]
    llava += ["--set", "sft.recompute=false", f"sft.max_tokens={options.length}"]
    models: dict[str, tuple[list[object], int]] = {
        "digits": ([*digits, "--data", folder / "captions"], options.digits_batch),
        "llava": ([*llava, "--data", folder / "dialogues"], options.llava_batch),
    }
    figures: dict[str, Any] = {}
    for name, (words, batch) in models.items():
        apart, two, three = sides = compare(name, words, batch, options, folder)
        console.print(sides_table(name, sides))
        figures[name] = {
            "sides": [asdict(one) for one in sides],
            "zero3_to_zero2": three.step_seconds / two.step_seconds,
            "share_spent_on_each_other": {
                one.name: 1 - one.tokens_per_second / apart.tokens_per_second
                for one in (two, three)
            },
            "agree_share": {
                one.name: one.phases["agree"] / one.step_seconds for one in (two, three)
            },
            "largest_difference_of_losses": difference(two, three),
        }
    figures["contract"] = contract(llava, options, folder)
    console.print(contract_table(figures["contract"]))
    return figures


def run(args: list[str]) -> None:
    """Measure, and print what was found."""
    options = parse(Options, prog="python benchmarks/zero.py", args=args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        figures = measure(options, folder)
    figures["options"] = asdict(options) | {"keep": str(options.keep)}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(run)
