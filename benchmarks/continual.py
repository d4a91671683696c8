"""Instruction tuning on tasks one after the other: what is forgotten, and what helps.

    python benchmarks/continual.py [--output DIR] [--samples N] [--captions N] [--replay SHARE]

On the digits world: which digit is in a picture, which digits sound, and which colour a digit in a
picture has. MM-PT aligns the projectors once. SFT then trains LoRA on one task after the other,
each from the adapters of the one before (`--init-from`): with the new task's samples alone; with a
share of earlier tasks' samples (`--mix`); or with adapters of its own for every task, from MM-PT,
of which a question chooses its task's. Prints the accuracy of every task after each, forgetting,
and as the last line one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from etl.digits import texts, tones
from etl.digits.records import medium_of, pair_sample
from etl.digits.scenes import Scene, random_scene
from etl.digits.subjects import SUBJECTS, sample
from etl.storage.atomic import write_json
from etl.storage.schema import PLACEHOLDERS, Medium, Sample, Turn
from etl.storage.shards import ShardSet, write_folder
from model.presets import system
from model.spec import Stage
from pipeline.evaluate.assistant import Assistant
from pipeline.evaluate.forgetting import Forgetting, measure_forgetting
from pipeline.evaluate.generate_answers import generate_answers
from pipeline.quickstart.commands import train

METHODS = ("nothing", "replay", "adapter per task")
_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train tasks of the digits world in sequence, and measure what is forgotten."""

    output: Path = Path("runs/continual")
    """Folder for data and runs; existing ones are kept and resumed."""
    captions: int = 4000
    """Captioned pictures for MM-PT; of sounds there are a quarter as many."""
    samples: int = 1200
    """Questions of each task to train on."""
    questions: int = 150
    """Held-out questions of each task."""
    replay: float = 0.2
    """Share of samples of earlier tasks, all together."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""

    def __post_init__(self) -> None:
        """Raise UserError for a share that is none."""
        if not 0 < self.replay < 1:
            raise UserError(f"--replay {self.replay}: want a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions of one kind.

    Args:
        stream: keys the random numbers.
        content: takes a generator and the split `train` or `held_out`.
        media: renders the content.
        questions: one of them is asked.
    """

    stream: int
    content: Callable[[np.random.Generator, str], Any]
    media: Callable[[Any], tuple[Medium, ...]]
    questions: Sequence[Callable[[Any, np.random.Generator], texts.Question]]


def _picture(scene: Scene) -> tuple[Medium, ...]:
    return (medium_of(scene, "image/png"),)


TASKS: Mapping[str, Task] = {
    "digit": Task(
        stream=31, content=random_scene, media=_picture, questions=texts.QUESTION_MAKERS[:2]
    ),
    "sound": Task(
        stream=32,
        content=tones.random_dialling,
        media=SUBJECTS["audio"].media,
        questions=texts.DIALLING_QUESTIONS,
    ),
    "colour": Task(
        stream=33, content=random_scene, media=_picture, questions=texts.QUESTION_MAKERS[2:4]
    ),
}


def task_sample(name: str, split: str, number: int) -> Sample:
    """Return the `number`-th question of a task."""
    task = TASKS[name]
    rng = np.random.default_rng((task.stream, split == "held_out", number))
    content = task.content(rng, split)
    media = task.media(content)
    [question] = texts.ask(task.questions, content, rng, 1)
    head = "".join(PLACEHOLDERS[medium.kind] for medium in media)
    turns = (
        Turn(role="user", text=f"{head}\n{question.text}"),
        Turn(role="assistant", text=question.answer),
    )
    sample_id = f"{name}-{split}-{number:06d}"
    return Sample(id=sample_id, source="digits", turns=turns, media=media, lineage={"kind": name})


def run(args: Sequence[str]) -> None:
    """Train and evaluate everything, and print the tables."""
    options = parse(Options, prog="benchmarks/continual.py", args=args)
    out = options.output.resolve()
    write_data(options, out / "data")
    preset = str(out / "preset.json")
    out.mkdir(parents=True, exist_ok=True)
    write_json(Path(preset), preset_fields())
    captions = [out / "data" / f"captions_{kind}" for kind in ("image", "audio")]
    pt = out / "pt"
    train("pt", preset, captions, pt, ranks=options.ranks)
    found = {method: accuracies(method, options, preset, pt) for method in METHODS}
    measures = {method: measure_forgetting(matrix) for method, matrix in found.items()}
    Console().print(table(found, measures))
    results = {
        method: {"accuracies": found[method], **asdict(measures[method])} for method in METHODS
    }
    sys.stdout.write(json.dumps({"tasks": [*TASKS], "continual": results}) + "\n")


def preset_fields() -> dict[str, Any]:
    """Return a preset that sees and hears, whose MM-IT trains the backbone's LoRA alone."""
    base = system("digits_any")
    assert base.pt is not None
    assert base.sft is not None
    projectors = tuple(f"inputs.{kind}.projector.*" for kind in base.model.modalities)

    def understanding(stage: Stage, trainable: tuple[str, ...], epochs: int) -> Stage:
        return replace(
            stage, trainable=trainable, generation=None, groups=(), epochs=epochs, ds_config="zero2"
        )

    return asdict(
        replace(
            base,
            name="digits_continual",
            model=replace(base.model, outputs=()),
            pt=understanding(base.pt, projectors, 2),
            sft=understanding(base.sft, ("backbone.*lora_*",), 2),
        )
    )


def write_data(options: Options, folder: Path) -> None:
    """Write captions, and each task's questions to train on and held-out ones."""

    def write(name: str, make: Callable[[int], Sample], rows: int) -> None:
        if not (folder / name / "manifest.json").is_file():
            write_folder(folder / name, map(make, range(rows)), job="digits")

    write("captions_image", lambda number: pair_sample(0, number), options.captions)
    write(
        "captions_audio",
        lambda number: sample("audio", "captions", 0, number),
        options.captions // 4,
    )
    for name in TASKS:
        write(name, lambda number, name=name: task_sample(name, "train", number), options.samples)
        write(
            f"{name}_held_out",
            lambda number, name=name: task_sample(name, "held_out", number),
            options.questions,
        )


def accuracies(method: str, options: Options, preset: str, pt: Path) -> list[list[float]]:
    """Train the tasks in sequence; return the accuracy of every task after each."""
    names, before, rows = [*TASKS], pt, []
    runs: list[Path] = []
    for number, name in enumerate(names):
        # The first task of a sequence has nothing to replay, and its adapters are its own.
        shared = number == 0 or method == "nothing"
        out = pt.parent / ("nothing" if shared else method.replace(" ", "_")) / name
        earlier = names[:number] if method == "replay" else []
        shares = [f"{other}={100 * options.replay / number:g}%" for other in earlier]
        folders = [pt.parent / "data" / each for each in (name, *earlier)]
        extra = ("--mix", *shares) if shares else ()
        if number or method == METHODS[0]:
            train("sft", preset, folders, out, ranks=options.ranks, init_from=before, extra=extra)
        runs.append(out)
        if method != "adapter per task":
            before, chosen = out, dict.fromkeys(names, out)
        else:  # a task that has no adapters yet is asked of the newest
            chosen = {each: runs[min(index, number)] for index, each in enumerate(names)}
        rows.append([accuracy(chosen[each], pt.parent / "data", each) for each in names])
    return rows


@torch.no_grad()
def accuracy(run: Path, data: Path, task: str) -> float:
    """Return a run's share of exact answers to a task's held-out questions, measured once."""
    file = run / f"accuracy_{task}.json"
    if file.is_file():
        return float(json.loads(file.read_bytes()))
    assistant = Assistant.open(run)
    module = assistant.load_model().eval()
    held_out = ShardSet([data / f"{task}_held_out"])
    samples = [held_out[number] for number in range(len(held_out))]
    answers = []
    for start in range(0, len(samples), _BATCH):
        answers += generate_answers(
            module,
            assistant.tokenizer,
            assistant.encoder,
            samples[start : start + _BATCH],
            max_new_tokens=8,
        )
    share = sum(answer.correct for answer in answers) / len(answers)
    write_json(file, share)
    return share


def table(found: Mapping[str, list[list[float]]], measures: Mapping[str, Forgetting]) -> Table:
    """Return accuracies after each task, and what they amount to."""
    result = Table("method", "after", *TASKS, "mean", "backward transfer", "forgetting")
    for method, matrix in found.items():
        for name, row in zip(TASKS, matrix, strict=True):
            cells = [f"{100 * share:.1f} %" for share in row]
            last = name == [*TASKS][-1]
            measured = measures[method]
            amounts = (measured.accuracy, measured.backward_transfer, measured.forgetting)
            result.add_row(
                *(method, name, *cells),
                *(f"{100 * each:.1f} %" if last else "" for each in amounts),
                end_section=last,
            )
    return result


if __name__ == "__main__":
    main(run)
