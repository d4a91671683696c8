"""`python -m pipeline score`: a benchmark's official score of any file of predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from etl.cli import parse
from pipeline.evaluate.benchmark import benchmark_table, read_answers
from pipeline.evaluate.benchmarks import find_benchmark


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score predictions for a benchmark; needs neither a model nor the images."""

    benchmark: tyro.conf.Positional[str]
    """The benchmark's name."""
    predictions: Path
    """JSON lines with the id of each question and the answer to it."""
    data: Path
    """The folder with the benchmark's published files."""
    json: bool = False
    """Print the scores as JSON instead of a table."""


def score(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ScoreOptions, prog="python -m pipeline score", args=args)
    benchmark = find_benchmark(options.benchmark)
    questions = benchmark.read(options.data)
    scores = benchmark.score(questions, read_answers(options.predictions, questions))
    if options.json:
        sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    else:
        Console().print(benchmark_table(scores))
    return 0
