"""What an evaluation leaves of a benchmark: scores, official predictions, a row of the survey."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from etl.cli import UserError
from etl.storage.atomic import atomic_file
from pipeline.evaluate.benchmark import (
    Answered,
    Benchmark,
    BenchmarkSamples,
    benchmark_table,
)
from pipeline.evaluate.generate_answers import Prediction
from pipeline.evaluate.judge import Judge, grade
from pipeline.evaluate.metrics import Metrics, intervals, values
from pipeline.evaluate.partial_predictions import writing

log = logging.getLogger(__name__)

OFFICIAL = "official"
"""Folder of the predictions in the benchmark's own format."""
RESAMPLES = 1000


def benchmark_tasks(
    benchmarks: Sequence[Benchmark], data: Sequence[Path]
) -> list[tuple[Benchmark, Path]]:
    """Return each benchmark with its data folder.

    Args:
        benchmarks: to be asked.
        data: a folder for each, in order, or one that has a folder named after each.

    Raises:
        UserError: another number of folders.
    """
    if len(data) == len(benchmarks):
        return list(zip(benchmarks, data, strict=True))
    if len(benchmarks) == 1:
        raise UserError(f"--data: {len(data)} folders, want one for --benchmark")
    if len(data) != 1:
        raise UserError(
            f"--data: {len(data)} folders, want one for each of {len(benchmarks)} benchmarks, or"
            " one with a folder named after each"
        )
    return [(benchmark, data[0] / benchmark.name) for benchmark in benchmarks]


def benchmark_results(
    samples: BenchmarkSamples,
    seeing: Sequence[Prediction],
    blind: Sequence[Prediction],
    output: Path,
    judge: Judge | None,
) -> tuple[dict[str, Any], RenderableType]:
    """Write the official predictions; return the content of scores.json, and a table of it.

    There are no scores where the true answers are not published, or a judge is needed and there is
    none; a log line says so.
    """
    benchmark = samples.benchmark
    views = {
        name: [
            (question, benchmark.prediction(question, prediction.answer))
            for question, prediction in zip(samples.questions, predictions, strict=True)
        ]
        for name, predictions in (("scores", seeing), ("blind", blind))
    }
    if benchmark.save is not None:
        save_official(benchmark, views["scores"], output)
    value: dict[str, Any] = {"benchmark": benchmark.name, "questions": len(samples)}
    value |= {"scores": {}, "blind": {}}
    if not all(question.answer for question in samples.questions):
        log.warning(
            "%s: the answers of this split are not published; its server scores %s",
            benchmark.name,
            output / OFFICIAL,
        )
        return value, ""
    if benchmark.grading is not None and judge is None:
        log.warning(
            "%s: a language model grades the answers: score %s with --judge",
            benchmark.name,
            output / OFFICIAL,
        )
        return value, ""
    metrics = {
        name: _metrics(benchmark, answered, judge, output / f"grades_{name}.jsonl")
        for name, answered in views.items()
    }
    value |= {name: values(one) for name, one in metrics.items()}
    bounds = intervals(metrics["scores"], resamples=RESAMPLES)
    value |= {"intervals": bounds, "survey": benchmark.survey_figures(value["scores"])}
    return value, Group(f"\n{benchmark.name}", benchmark_table(value["scores"], bounds))


def _metrics(
    benchmark: Benchmark, answered: Sequence[Answered], judge: Judge | None, path: Path
) -> Metrics:
    if benchmark.grading is not None and judge is not None:
        answered = grade(benchmark, answered, judge, path)
    return benchmark.metrics(answered)


def save_official(benchmark: Benchmark, answered: Sequence[Answered], output: Path) -> None:
    """Write predictions as the benchmark's server or script takes them."""
    assert benchmark.save is not None
    files: Mapping[str, bytes] = benchmark.save(answered)
    for name, content in files.items():
        path = output / OFFICIAL / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as stream:
                stream.write(content)
