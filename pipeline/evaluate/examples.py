"""Example answers of an evaluation, with their media, for the page of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from etl.report.media import embed
from etl.report.page import Card
from etl.storage.atomic import write_json
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from pipeline.evaluate.benchmark import BenchmarkSamples
from pipeline.evaluate.generate_answers import Prediction

Answers = Mapping[int, tuple[Prediction, Prediction]]
"""By number of the sample: the answer with its media, and without."""

_EXAMPLES = 24
_PRINTED = 8


def write_examples(
    path: Path,
    samples: ShardSet | BenchmarkSamples,
    answers: Answers,
    *,
    source: str,
) -> None:
    """Write the first answers to each kind of question as cards of a page.

    Args:
        path: of the JSON file.
        samples: of the data set.
        answers: by number of the sample: with its media, and without.
        source: which model and data they are of, in words.
    """
    chosen = _choose(answers, _EXAMPLES)
    # A benchmark's official score may accept more than the very truth.
    exact = isinstance(samples, ShardSet)
    cards = [asdict(_card(samples[index], *answers[index], exact=exact)) for index in chosen]
    write_json(path, {"source": source, "cards": cards})


def examples_table(answers: Answers) -> Table:
    """Return the first answers to each kind of question as a table.

    Args:
        answers: as of `write_examples`.
    """
    table = Table("sample", "question", "truth", "answer", "without media")
    for index in _choose(answers, _PRINTED):
        seeing, blind = answers[index]
        texts = (seeing.id, seeing.question, seeing.truth, seeing.answer, blind.answer)
        table.add_row(*map(escape, texts))
    return table


def _choose(answers: Answers, number: int) -> list[int]:
    """Return the numbers of the first of each kind, then of the second of each, and so on."""
    kinds: dict[str, list[int]] = {}
    for index, (prediction, _) in answers.items():
        kinds.setdefault(prediction.kind, []).append(index)
    by_rank = sorted(
        (rank, index) for of_kind in kinds.values() for rank, index in enumerate(of_kind)
    )
    return sorted(index for _, index in by_rank[:number])


def _card(sample: Sample, seeing: Prediction, blind: Prediction, *, exact: bool) -> Card:
    truth = [] if exact and seeing.correct else [("truth", seeing.truth)]
    return Card(
        media=[embed(medium) for medium in sample.media],
        text=seeing.question,
        answer=seeing.answer or "(nothing)",
        details=[*truth, ("without media", blind.answer or "(nothing)")],
        correct=seeing.correct if exact else None,
    )
