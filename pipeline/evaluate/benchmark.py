"""The interface of a published benchmark: a reader of its files, and its official score.

Each file in `pipeline/evaluate/benchmarks/` is one benchmark; both of its functions are pure.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from etl.cli import UserError
from etl.storage.schema import PLACEHOLDERS, Medium, Sample, Turn, sha256

Scores = Mapping[str, Mapping[str, float]]
"""Split → metric → value."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark.

    Args:
        id: unique within the benchmark; predictions refer to it.
        split: the questions that are scored together.
        text: of the question, without placeholders.
        answer: the true answer.
        images: paths relative to the data folder; shown before the text.
    """

    id: str
    split: str
    text: str
    answer: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark.

    Args:
        name: on the command line.
        read: reads its published files from a data folder; raises UserError.
        score: scores answers, by question id, as the official script does.
    """

    name: str
    read: Callable[[Path], list[Question]]
    score: Callable[[Sequence[Question], Mapping[str, str]], Scores]


class BenchmarkSamples:
    """The questions of a benchmark as samples; images are read on access.

    Args:
        benchmark: to read.
        folder: with its published files and its images.
        limit: number of questions, from the start; None for all.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, limit: int | None = None) -> None:
        self.benchmark, self._folder = benchmark, folder
        self.questions = benchmark.read(folder)[:limit]
        for path in dict.fromkeys(path for q in self.questions for path in q.images):
            if not (folder / path).is_file():
                raise UserError(f"{folder / path}: no such file; {benchmark.name} needs its images")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Sample:
        """Return a question, with its true answer as the assistant's turn."""
        question = self.questions[index]
        text = f"{PLACEHOLDERS['image']}\n" * len(question.images) + question.text
        return Sample(
            id=question.id,
            source=self.benchmark.name,
            turns=(
                Turn(role="user", text=text),
                Turn(role="assistant", text=question.answer),
            ),
            media=tuple(_image(self._folder / path) for path in question.images),
            lineage={"kind": question.split},
        )

    @property
    def fingerprint(self) -> str:
        """The sha256 of all questions; images are identified by their paths."""
        questions = [asdict(question) for question in self.questions]
        return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def _image(path: Path) -> Medium:
    data = path.read_bytes()
    mime = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Medium(kind="image", data=data, mime=mime, sha256=sha256(data))


def read_answers(path: Path, questions: Iterable[Question]) -> dict[str, str]:
    """Read the answers to all questions from a file of predictions.

    Args:
        path: JSON lines, each an object with at least `id` and `answer`.
        questions: of the benchmark.

    Raises:
        UserError: no such file, an invalid line, or not exactly one answer to each question.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; want predictions as JSON lines")
    missing = {question.id for question in questions}
    answers: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            value = json.loads(line)
            name, answer = value["id"], value["answer"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: want a JSON object with id and answer") from None
        if name not in missing:
            reason = (
                "is answered twice" if name in answers else "is not a question of the benchmark"
            )
            raise UserError(f"{path}:{number}: id {name!r} {reason}")
        missing.remove(name)
        answers[name] = str(answer)
    if missing:
        raise UserError(f"{path}: no answer to {min(missing)!r} ({len(missing)} missing)")
    return answers


def benchmark_table(scores: Scores) -> Table:
    """Return scores as a table: a row per split, a column per metric."""
    metrics = list(dict.fromkeys(metric for values in scores.values() for metric in values))
    table = Table("split", *metrics)
    for split, values in scores.items():
        table.add_row(split, *(f"{values[m]:.4f}" if m in values else "" for m in metrics))
    return table
