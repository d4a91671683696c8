"""The result of a contest: tables on the terminal, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from etl.report.charts import line_chart, number
from etl.report.page import Cell, Section, write_page
from pipeline.contest.compare import PairedDifference, Result
from pipeline.run_folder.metrics_writer import read_metrics

_DIFFERENCES = ("variant", "score", "of", "difference", "95 % interval", "p")
_NOTE = (
    "Each variant minus {base}, of the same samples in the same steps and of the same questions; "
    "below 0 a loss is better. Percentile bootstrap: questions are resampled, and blocks of "
    "consecutive steps. Several variants are compared: with more of them, small p become more "
    "likely by chance."
)


def result_table(results: Sequence[Result]) -> tuple[list[str], list[list[Cell]]]:
    """Return the columns and the rows of the table of variants."""
    scores = [(of, name) for of, named in results[0].scores.items() for name in named]
    columns = ["variant", "trainable", "s/step", *(f"{name}, {of}" for of, name in scores)]
    answered = results[0].blind is not None
    rows: list[list[Cell]] = []
    for one in results:
        found = [one.scores.get(of, {}).get(name) for of, name in scores]
        rounded = [None if value is None else float(f"{value:.4g}") for value in found]
        blind = [round(one.blind, 4)] if answered and one.blind is not None else []
        seconds = float(f"{one.step_seconds:.3g}")
        rows.append([one.name, one.trainable, seconds, *rounded, *blind])
    return [*columns, *(["blind"] if answered else [])], rows


def _difference_rows(differences: Sequence[PairedDifference]) -> list[tuple[str, ...]]:
    return [
        (
            f"{one.variant} − {one.against}",
            one.score,
            one.of,
            f"{one.value:+.4g}",
            f"{one.low:+.4g} … {one.high:+.4g}",
            f"{one.p_value:.3f}",
        )
        for one in differences
    ]


def contest_tables(
    results: Sequence[Result], differences: Sequence[PairedDifference]
) -> list[Table]:
    """Return the tables for the terminal."""
    columns, rows = result_table(results)
    variants = Table(*columns, title="variants")
    for row in rows:
        variants.add_row(*(_text(cell) for cell in row))
    paired = Table(*_DIFFERENCES, title="paired differences")
    for cells in _difference_rows(differences):
        paired.add_row(*cells)
    return [variants, paired]


def _text(cell: Cell) -> str:
    return "" if cell is None else cell if isinstance(cell, str) else number(cell)


def write_contest_page(
    path: Path, results: Sequence[Result], differences: Sequence[PairedDifference]
) -> None:
    """Write the page: variants, differences, and the losses of all variants in one chart."""
    columns, rows = result_table(results)
    metrics = {one.name: read_metrics(Path(one.run)) for one in results}
    names = list(results[0].scores["all steps"])
    sections = [
        Section(
            heading="Variants",
            columns=columns,
            rows=rows,
            facts=[(one.name, "; ".join(one.settings)) for one in results if one.settings],
        ),
        Section(
            heading="Paired differences",
            columns=_DIFFERENCES,
            rows=_difference_rows(differences),
            note=_NOTE.format(base=results[0].name),
        ),
        Section(
            heading="Losses",
            charts=[
                chart
                for name in names
                for chart in (
                    line_chart(f"Loss: {name}", _curves(metrics, name), smooth=True),
                    line_chart(
                        f"Loss: {name}, minus that of {results[0].name}",
                        _paired_curves(metrics, name, results[0].name),
                        smooth=True,
                    ),
                )
            ],
        ),
    ]
    write_page(path, title="Contest", subtitle=str(path.parent.resolve()), sections=sections)


Curves = dict[str, list[tuple[float, float]]]


def _curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]], loss: str) -> Curves:
    return {
        name: [(entry["step"], entry["losses"][loss]) for entry in entries]
        for name, entries in metrics.items()
        if loss in entries[0]["losses"]
    }


def _paired_curves(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], loss: str, base: str
) -> Curves:
    curves = _curves(metrics, loss)
    theirs = dict(curves.pop(base))
    return {
        name: [(step, value - theirs[step]) for step, value in points if step in theirs]
        for name, points in curves.items()
    }
