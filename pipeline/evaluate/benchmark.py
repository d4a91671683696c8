"""The interface of a published benchmark: a reader of its files, and its official score.

Each file in `pipeline/evaluate/benchmarks/` is one benchmark or a family; the functions that read
and score are pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.table import Table

from etl.cli import UserError
from etl.storage.schema import PLACEHOLDERS, Medium, Sample, Turn, sha256
from pipeline.evaluate.metrics import Metrics, Scores, values

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Of the options of a multiple-choice question, in order."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark.

    Args:
        id: unique within the benchmark; predictions refer to it.
        split: the questions that are scored together.
        text: of the question as published, without placeholders.
        answer: the true answer, empty if it is not published.
        answers: all true answers where several people gave one.
        images: paths relative to the data folder, or data URIs; shown before the text.
        options: of a multiple-choice question.
        unit: the bootstrap resamples the questions of one unit together; by default each alone.
        labels: what else the score needs, such as the type of question.
    """

    id: str
    split: str
    text: str
    answer: str
    answers: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    unit: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", self.unit or self.id)


Answered = tuple[Question, str]
"""A question and a predicted answer to it."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the official script does with predictions that are not one answer to each question.

    Args:
        missing: a question without a prediction is an error, wrong (the answer is empty), or not
            counted.
        repeated: two predictions of a question are an error, the last one counts, or each does.
        unknown: predictions of other questions are an error, or ignored.
        blank: the answer of a missing question that is wrong.
    """

    missing: Literal["error", "wrong", "not counted"] = "error"
    repeated: Literal["error", "last", "each"] = "error"
    unknown: Literal["error", "ignored"] = "error"
    blank: str = ""


STRICT = Rules()


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What stands in a column of the survey's Table 2.

    Args:
        column: its title, one of `survey_table.COLUMNS`.
        value: of the scores, in the column's unit.
    """

    column: str
    value: Callable[[Scores], float]


def percent(split: str, metric: str) -> Callable[[Scores], float]:
    """Return a metric of a split, a share, in percent."""
    return lambda scores: 100 * scores[split][metric]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A part of the data folder.

    Args:
        paths: glob patterns, one of which has to match.
        source: where the files are published.
        images: of a model's input, so that `score` does without them.
    """

    paths: tuple[str, ...]
    source: str
    images: bool = False


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How a language model grades answers.

    Args:
        messages: returns the chat messages that ask for a grade: (question, answer, whether the
            last reply was unreadable).
        parse: returns the grade in a reply, None if it has none.
        load: returns the recorded grades in a file, (question id, grade) of each; None if the file
            holds none.
        unreadable: the grade where no reply has one.
        temperatures: of the replies that are asked for until one has a grade.
        max_tokens: of a reply.
    """

    messages: Callable[[Question, str, bool], list[dict[str, str]]]
    parse: Callable[[str], str | None]
    load: Callable[[Path, Sequence[Question]], list[tuple[str, str]] | None]
    unreadable: str
    temperatures: tuple[float, ...]
    max_tokens: int


def likeliest_letter(scores: Sequence[float]) -> str:
    """Return the letter of the option with the highest score, the first of several."""
    return LETTERS[max(range(len(scores)), key=scores.__getitem__)]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark.

    Args:
        name: on the command line.
        read: reads its published files from a data folder; raises UserError.
        metrics: the official metrics of answered questions.
        prompt: how the question is usually put to a model that writes its answer.
        ranked: how it is put where its options are ranked by their likelihoods.
        ask: whether the model writes its answer, or the most likely of the options is taken.
        prediction: what a model's reply becomes in the official format of predictions.
        chosen: the reply that stands for the mean log-likelihoods of a question's options.
        max_new_tokens: the longest reply, as LLaVA-1.5's scripts cut it.
        load: reads the official format of predictions from a file or folder: (question id,
            answer) of each; None if there is no other than ours.
        save: returns the files of predictions that the official server or script accepts: name →
            content.
        rules: for predictions that are not one answer to each question.
        grading: how a judge turns an answer into what `metrics` scores.
        layout: files of the data folder that are needed, and where they are published.
        headlines: what stands in the survey's Table 2.
    """

    name: str
    read: Callable[[Path], list[Question]]
    metrics: Callable[[Sequence[Answered]], Metrics]
    prompt: Callable[[Question], str] = lambda question: question.text
    ranked: Callable[[Question], str] = lambda question: question.text
    ask: Literal["generation", "likelihood"] = "generation"
    prediction: Callable[[Question, str], str] = lambda _, reply: reply
    chosen: Callable[[Sequence[float]], str] = likeliest_letter
    max_new_tokens: int = 128
    load: Callable[[Path, Sequence[Question]], list[tuple[str, str]]] | None = None
    save: Callable[[Sequence[Answered]], Mapping[str, bytes]] | None = None
    rules: Rules = STRICT
    grading: Grading | None = None
    layout: tuple[Needed, ...] = ()
    headlines: tuple[Headline, ...] = ()

    def survey_figures(self, scores: Scores) -> dict[str, float]:
        """Return what stands in the survey's Table 2: column → figure."""
        found = {}
        for headline in self.headlines:
            try:
                found[headline.column] = headline.value(scores)
            except KeyError:  # of questions that were not asked
                continue
        return found

    def score(self, questions: Sequence[Question], answers: Mapping[str, str]) -> Scores:
        """Return the official score of answers by question id, one to each question."""
        return values(self.metrics([(question, answers[question.id]) for question in questions]))


DATA_URI = "data:"


class BenchmarkSamples:
    """The questions of a benchmark as samples; images are read on access.

    Args:
        benchmark: to read.
        folder: with its published files and its images.
        limit: at most so many questions, of whole units from the start; None for all.
        ask: by generation or by likelihood; by default the benchmark's way.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        folder: Path,
        limit: int | None = None,
        ask: Literal["generation", "likelihood"] | None = None,
    ) -> None:
        self.benchmark, self._folder = benchmark, folder
        self.by_likelihood = (ask or benchmark.ask) == "likelihood"
        self.questions = read_questions(benchmark, folder)
        if limit is not None:
            self.questions = _first_units(self.questions, limit)
        for path in dict.fromkeys(path for q in self.questions for path in q.images):
            if not path.startswith(DATA_URI) and not (folder / path).is_file():
                raise UserError(f"{folder / path}: no such file; {benchmark.name} needs its images")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Sample:
        """Return a question, with its true answer as the assistant's turn."""
        question = self.questions[index]
        text = f"{PLACEHOLDERS['image']}\n" * len(question.images) + self.prompt(question)
        return Sample(
            id=question.id,
            source=self.benchmark.name,
            turns=(
                Turn(role="user", text=text),
                Turn(role="assistant", text=question.answer),
            ),
            media=tuple(_image(self._folder, path) for path in question.images),
            lineage={"kind": question.split},
        )

    def prompt(self, question: Question) -> str:
        """Return how a question is put."""
        ranked = self.by_likelihood and question.options
        return self.benchmark.ranked(question) if ranked else self.benchmark.prompt(question)

    @property
    def fingerprint(self) -> str:
        """The sha256 of all questions and prompts; images are identified by their paths."""
        questions = [(asdict(one), self.prompt(one)) for one in self.questions]
        return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def _first_units(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return the questions of as many units as fit into a limit, in their order.

    Raises:
        UserError: not one unit does.
    """
    sizes = Counter(question.unit for question in questions)
    taken: set[str] = set()
    total = 0
    for unit, size in sizes.items():
        if total + size > limit:
            break
        taken.add(unit)
        total += size
    if not taken:
        unit, size = next(iter(sizes.items()))
        raise UserError(f"--limit: {limit}, want at least {size}, the questions of unit {unit!r}")
    return [question for question in questions if question.unit in taken]


def read_questions(benchmark: Benchmark, folder: Path, *, images: bool = True) -> list[Question]:
    """Read a benchmark's questions from a data folder that has all of its files.

    Args:
        benchmark: to read.
        folder: with its published files.
        images: whether its images have to be there, too.

    Raises:
        UserError: a file is missing or damaged, or there are no questions.
    """
    check_layout(benchmark, folder, images=images)
    questions = benchmark.read(folder)
    if not questions:
        raise UserError(f"{folder}: holds no questions of {benchmark.name}")
    return questions


def check_layout(benchmark: Benchmark, folder: Path, *, images: bool = True) -> None:
    """Check that a data folder has a benchmark's files.

    Raises:
        UserError: names all that are missing, and where they are published.
    """
    missing = [
        f"{' or '.join(needed.paths)} ({needed.source})"
        for needed in benchmark.layout
        if (images or not needed.images)
        and not any(next(folder.glob(path), None) for path in needed.paths)
    ]
    if missing:
        raise UserError(f"{folder}: {benchmark.name} lacks {'; '.join(missing)}")


def _image(folder: Path, path: str) -> Medium:
    if path.startswith(DATA_URI):
        mime, _, text = path.removeprefix(DATA_URI).partition(";base64,")
        data = base64.b64decode(text)
    else:
        data = (folder / path).read_bytes()
        mime = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return Medium(kind="image", data=data, mime=mime, sha256=sha256(data))


def data_uri(text: str) -> str:
    """Return base64 of a JPEG or PNG file as a data URI.

    Raises:
        ValueError: it is not base64 of one of them.
    """
    try:
        head = base64.b64decode(text[:16], validate=True)
    except binascii.Error:
        head = b""
    for start, mime in ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png")):
        if head.startswith(start):
            return f"{DATA_URI}{mime};base64,{text}"
    raise ValueError("want base64 of a JPEG or PNG file")


def benchmark_table(
    scores: Scores, bounds: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
) -> Table:
    """Return scores as a table: a row per split, a column per metric, intervals in brackets."""
    metrics = list(dict.fromkeys(metric for named in scores.values() for metric in named))
    table = Table("split", *metrics)
    for split, named in scores.items():
        cells = [f"{named[name]:.4f}" if name in named else "" for name in metrics]
        if bounds is not None:
            spans = [bounds[split].get(name) for name in metrics]
            cells = [
                f"{cell} [{span[0]:.4f}, {span[1]:.4f}]" if span else cell
                for cell, span in zip(cells, spans, strict=True)
            ]
        table.add_row(split, *cells)
    return table
