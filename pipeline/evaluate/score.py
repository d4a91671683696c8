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
from pipeline.evaluate.benchmark import Benchmark, Question, benchmark_table, check_layout
from pipeline.evaluate.benchmarks import find_benchmark
from pipeline.evaluate.metrics import Difference, Metrics, differences, intervals, values
from pipeline.evaluate.prediction_files import read_predictions


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score predictions for a benchmark; needs neither a model nor the images."""

    benchmark: tyro.conf.Positional[str]
    """The benchmark's name."""
    predictions: Path
    """Predictions in the benchmark's official format, or JSON lines with the id of each question
    and the answer to it."""
    data: Path
    """The folder with the benchmark's published files."""
    against: Path | None = None
    """Other predictions of the same questions: compare the two, paired by question."""
    bootstrap: int = 0
    """Resamples for confidence intervals of 95 %; 0 for none. With --against: 1000 by default."""
    json: bool = False
    """Print the scores as JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise UserError(f"--bootstrap: {self.bootstrap}, want at least 0")


def score(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ScoreOptions, prog="python -m pipeline score", args=args)
    benchmark = find_benchmark(options.benchmark)
    check_layout(benchmark, options.data, images=False)
    questions = benchmark.read(options.data)
    check_answers(benchmark, questions, options.data)
    metrics = _metrics(benchmark, options.predictions, questions)
    scores = values(metrics)
    result: dict[str, Any] = dict(scores)
    tables = [benchmark_table(scores)]
    if options.bootstrap:
        bounds = intervals(metrics, resamples=options.bootstrap)
        result["intervals"] = bounds
        tables = [benchmark_table(scores, bounds)]
    if options.against is not None:
        theirs = _metrics(benchmark, options.against, questions)
        found = differences(metrics, theirs, resamples=options.bootstrap or 1000)
        result["differences"] = {
            split: {name: asdict(one) for name, one in named.items()}
            for split, named in found.items()
        }
        tables.append(_differences_table(options, found))
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


def _metrics(benchmark: Benchmark, path: Path, questions: Sequence[Question]) -> Metrics:
    return benchmark.metrics(read_predictions(benchmark, path, questions))


def _differences_table(options: ScoreOptions, found: dict[str, dict[str, Difference]]) -> Table:
    title = f"{options.predictions} minus {options.against}"
    table = Table("split", "metric", "difference", "95 %", "p", title=title)
    for split, named in found.items():
        for name, one in named.items():
            bounds = f"{one.low:+.4f} … {one.high:+.4f}"
            table.add_row(split, name, f"{one.value:+.4f}", bounds, f"{one.p_value:.3f}")
    return table
