"""Throughput of GRPO: this trainer against TRL's GRPOTrainer with transformers' own LLaVA.

    python benchmarks/grpo.py [--prompts N] [--group N] [--tokens N]

Both sides train LoRA of the same rank in the same small LLaVA (one folder, imported here, loaded
there), with the same questions about the same images, the same number of sampled answers and the
same reward, in float32, in one process with all of the machine's cores. Weights are random and so
hardly any answer ends early: both sides sample about as many tokens, which are counted. Prints a
table and as the last line one JSON object.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks import step_rate
from benchmarks.ranks import run_ranks
from etl.cli import main, parse
from etl.storage.schema import Sample, Turn
from etl.storage.shards import write_folder
from pipeline.convert.import_ import import_run
from pipeline.train.rewards import Answer

RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare sampled and trained answers per second with those of TRL."""

    prompts: int = 4
    """Prompts of a step, in one micro-batch."""
    group: int = 8
    """Answers to a prompt."""
    tokens: int = 32
    """New tokens of an answer, at most."""
    steps: int = 5
    width: int = 256
    layers: int = 4
    vocabulary: int = 32_000
    warm: int = 1
    """Steps at the beginning that are not measured."""
    keep: Path | None = None
    """Folder for data and runs. Default: a temporary one."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The measurements of one side after the warm-up.

    Args:
        answers: sampled and trained.
        seconds: wall time.
        length: tokens of an answer, on average.
    """

    name: str
    answers: int
    seconds: float
    length: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def letters(text: str) -> float:
    """Return the reward of an answer on both sides: any function of its text."""
    return sum(map(ord, text)) % 7


def reward(answer: Answer) -> float:
    """Return the reward as this trainer asks for it."""
    return letters(answer.text)


def give_every_id_a_word(checkpoint: Path, vocabulary: int) -> None:
    """Fill the vocabulary of bytes with words, so that random answers differ in their texts."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    words = [f" word{number}" for number in range(len(tokenizer), vocabulary - 1)]
    tokenizer.add_tokens(words)  # the last id stands for an image
    tokenizer.save_pretrained(checkpoint)


def samples(count: int) -> Iterator[Sample]:
    """Yield questions about images of LLaVA-1.5's size that resemble photographs."""
    random = np.random.default_rng(1)
    for number in range(count):
        turns = (
            Turn(role="user", text="<image>\nWhat do you see?"),
            Turn(role="assistant", text="two red digits"),
        )
        media = (step_rate.photograph(random),)
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=media)


def train_with_mmloom(options: Options, folder: Path) -> Side:
    """Train with this trainer."""
    run = folder / "mmloom"
    objective = {"kind": "grpo", "group": options.group, "max_new_tokens": options.tokens}
    objective["rewards"] = ["benchmarks.grpo:reward"]
    lora = {"kind": "lora", "rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": TARGETS}
    words = ["pipeline", "rlhf", folder / "imported" / "config.json"]
    words += ["--data", folder / "data", "--init-from", folder / "imported", "--output", run]
    words += ["--ds-config", "zero2", "--precision", "fp32", "--save-every", 10**9]
    words += ["--global-batch", options.prompts, "--micro-batch", options.prompts]
    words += ["--epochs", 1, "--learning-rate", 1e-4]
    words += ["--set", f"rlhf.objective={json.dumps(objective)}", f"rlhf.peft={json.dumps(lora)}"]
    words += ["rlhf.recompute=false", 'rlhf.trainable=["backbone.*lora_*.default.*"]']
    run_ranks(1, words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = lines[options.warm :]
    return Side(
        name="mmloom",
        answers=options.prompts * options.group * len(measured),
        seconds=sum(line["step_seconds"] for line in measured),
        length=float(np.mean([line["losses"]["length"] for line in measured])),
    )


def train_with_trl(options: Options, folder: Path) -> Side:
    """Train with TRL, see `grpo_trainer.py`."""
    file = folder / "trl.json"
    words = ["benchmarks.grpo_trainer", "--checkpoint", folder / "llava", "--data", folder / "data"]
    words += ["--output", file, "--prompts", options.prompts, "--group", options.group]
    words += ["--tokens", options.tokens]
    run_ranks(1, words)
    results = json.loads(file.read_bytes())
    measured = results["seconds"][options.warm :]
    return Side(
        name="TRL",
        answers=options.prompts * options.group * len(measured),
        seconds=sum(measured),
        length=float(np.mean(results["lengths"][options.warm :])),
    )


def table(sides: list[Side]) -> Table:
    """Return both sides as a table."""
    printed = Table("", "answers/s", "s", "tokens of an answer", title="GRPO of a small LLaVA")
    for side in sides:
        printed.add_row(side.name, f"{side.rate:.2f}", f"{side.seconds:.1f}", f"{side.length:.1f}")
    return printed


def run(args: list[str]) -> None:
    """Run both sides and print the results."""
    options = parse(Options, prog="python benchmarks/grpo.py", args=args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder / "data", samples(options.prompts * options.steps), job="bench")
        small = step_rate.Options(
            width=options.width, layers=options.layers, vocabulary=options.vocabulary
        )
        step_rate.checkpoint(small, folder / "llava")
        give_every_id_a_word(folder / "llava", options.vocabulary)
        import_run(folder / "llava", folder / "imported", "sft")
        sides = [train_with_mmloom(options, folder), train_with_trl(options, folder)]
    Console(stderr=True).print(table(sides))
    results = {
        "sides": [asdict(side) | {"answers_per_second": side.rate} for side in sides],
        "ratio": sides[0].rate / sides[1].rate,
        "options": asdict(options) | {"keep": str(options.keep)},
    }
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(run)
