"""`python -m pipeline score`: a benchmark's official score of any file of predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, parse
from pipeline.evaluate.benchmark import Benchmark, Question, benchmark_table, read_questions
from pipeline.evaluate.benchmarks import find_benchmark
from pipeline.evaluate.judge import Judge, Messages, address_judge, grade, read_grades
from pipeline.evaluate.metrics import Difference, Metrics, differences, intervals, values
from pipeline.evaluate.prediction_files import read_predictions
from pipeline.evaluate.survey_table import survey_table


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score predictions for a benchmark; needs neither a model nor the images."""

    benchmark: tyro.conf.Positional[str]
    """The benchmark's name."""
    predictions: Path
    """Predictions in the benchmark's official format, JSON lines with the id of each question and
    the answer to it, or the folder of an evaluation."""
    data: Path
    """The folder with the benchmark's published files."""
    against: Path | None = None
    """Other predictions of the same questions: compare the two, paired by question."""
    bootstrap: int = 0
    """Resamples for confidence intervals of 95 %; 0 for none. With --against: 1000 by default."""
    judge: str | None = None
    """For answers that a language model grades: an OpenAI-compatible address, such as
    http://127.0.0.1:8000/v1; the environment's OPENAI_API_KEY is sent to it."""
    judge_model: str = "gpt-4-0613"
    """The judge's name at that address."""
    judge_run: Path | None = None
    """A run of ours as the judge instead."""
    grades: Path | None = None
    """Where the judge's grades are kept, to be resumed. Default: PREDICTIONS.grades.jsonl."""
    json: bool = False
    """Print the scores as JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge_run is not None:
            raise UserError("--judge and --judge-run: want one of them")
        if self.bootstrap < 0:
            raise UserError(f"--bootstrap: {self.bootstrap}, want at least 0")


def score(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ScoreOptions, prog="python -m pipeline score", args=args)
    benchmark = find_benchmark(options.benchmark)
    questions = read_questions(benchmark, options.data, images=False)
    check_answers(benchmark, questions, options.data)
    metrics = _metrics(options, benchmark, options.predictions, questions)
    scores = values(metrics)
    result: dict[str, Any] = dict(scores)
    tables = [benchmark_table(scores)]
    if options.bootstrap:
        bounds = intervals(metrics, resamples=options.bootstrap)
        result["intervals"] = bounds
        tables = [benchmark_table(scores, bounds)]
    if options.against is not None:
        theirs = _metrics(options, benchmark, options.against, questions)
        found = differences(metrics, theirs, resamples=options.bootstrap or 1000)
        result["differences"] = {
            split: {name: asdict(one) for name, one in named.items()}
            for split, named in found.items()
        }
        tables.append(_differences_table(options, found))
    survey = benchmark.survey_figures(scores)
    if survey:
        tables.append(survey_table(survey, str(options.predictions)))
    if options.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        Console().print(*tables)
    return 0


def check_answers(benchmark: Benchmark, questions: Sequence[Question], folder: Path) -> None:
    """Check that the true answers are published.

    Raises:
        UserError: those of a question are not; only the benchmark's server has them.
    """
    unknown = next((question for question in questions if not question.answer), None)
    if unknown is not None:
        raise UserError(
            f"{folder}: the answers of {benchmark.name}'s split {unknown.split!r} are not"
            " published; only its server scores them"
        )


def _metrics(
    options: ScoreOptions, benchmark: Benchmark, path: Path, questions: Sequence[Question]
) -> Metrics:
    if benchmark.grading is None:
        return benchmark.metrics(read_predictions(benchmark, path, questions))
    graded = read_grades(benchmark, path, questions)
    if graded is None:
        answered = read_predictions(benchmark, path, questions)
        kept = path.with_name(f"{path.name}.grades.jsonl")
        if options.grades is not None and path == options.predictions:
            kept = options.grades
        graded = grade(benchmark, answered, _judge(options, benchmark, path), kept)
    return benchmark.metrics(graded)


def _judge(options: ScoreOptions, benchmark: Benchmark, path: Path) -> Judge:
    if options.judge is not None:
        return address_judge(options.judge, options.judge_model)
    if options.judge_run is not None:
        return _run_judge(options.judge_run)
    raise UserError(
        f"{path}: a language model grades the answers to {benchmark.name}; want --judge or"
        " --judge-run, or a file of grades as the predictions"
    )


def _run_judge(run: Path) -> Judge:
    """Return a run of ours as a judge; its replies are greedy."""
    from pipeline.evaluate.assistant import Assistant  # noqa: PLC0415 - PyTorch, which scores need not

    assistant = Assistant.open(run)

    def ask(messages: Messages, max_tokens: int, temperature: float) -> str:
        del temperature
        text = "\n\n".join(message["content"] for message in messages)
        return assistant.ask(text, max_new_tokens=max_tokens)

    return ask


def _differences_table(options: ScoreOptions, found: dict[str, dict[str, Difference]]) -> Table:
    title = f"{options.predictions} minus {options.against}"
    table = Table("split", "metric", "difference", "95 %", "p", title=title)
    for split, named in found.items():
        for name, one in named.items():
            bounds = f"{one.low:+.4f} … {one.high:+.4f}"
            table.add_row(split, name, f"{one.value:+.4f}", bounds, f"{one.p_value:.3f}")
    return table
