"""The result of the align quickstart: a table on the terminal, and a page with curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from etl.report.charts import line_chart
from etl.report.media import embed
from etl.report.page import Card, Section, write_page
from etl.storage.shards import ShardSet
from pipeline.quickstart.align_scores import STARTS, Answer, read_answers, read_media, removed
from pipeline.quickstart.report import STAGE_COLUMNS, stage_row
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_chart

NAMES = {"sft": "SFT", "dress": "DRESS", "dpo": "DPO", "grpo": "GRPO"}
_MEDIA = {"image": "pictures", "audio": "sounds"}
_COLUMNS = ("model", "exact answers", "errors removed", "wrong-medium answers")
_SHOWN = 8
"""Questions whose answers the page shows."""
_ABOUT = (
    "One small model that reads text, pictures and sounds. MM-PT aligned its projectors on "
    "captions, and SFT tuned it on dialogues about a single digit or tone. RLHF then goes on from "
    "that one model, with preferences about up to three digits or tones: DRESS and DPO with a "
    "wrong answer to each question (DRESS with its critique, too), and GRPO, after DPO, with the "
    "model's own answers, rewarded if they are exact.",
    "Exact answers: to questions about what is there, on held-out handwriting and telephones. "
    "Wrong-medium answers: the share of questions about what is not there (a digit, colour, "
    "position or tone that is missing, or something that only the other kind of medium could show) "
    "that are answered as if it was: with anything but no.",
)


def print_align_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print the table of models."""
    console = Console()
    table = Table(*_COLUMNS, title="held-out handwriting and telephones")
    for row in _rows(summary):
        table.add_row(*row)
    console.print(table)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)


def write_align_report(out: Path, summary: Mapping[str, Any]) -> None:
    """Write `report.html`: figures, what is owed to the medium, answers, losses, stages."""
    curves = summary["curves"]
    sections = [
        Section(heading="What this is", paragraphs=_ABOUT),
        Section(heading="Before and after RLHF", columns=_COLUMNS, rows=_rows(summary)),
        Section(
            heading="Owed to the medium",
            charts=gap_charts(curves),
            columns=("model", "medium", "seeing", "blind", "gap"),
            rows=_media_rows(curves),
            note="Exact answers about what is there, with the medium (seeing) and without it "
            "(blind), and the gap between the two. A run's steps follow those of the run that it "
            "goes on from; before its last checkpoint they are measured on the first questions "
            "alone.",
        ),
        Section(heading="Kinds of questions", columns=("", *NAMES.values()), rows=_kinds(curves)),
        Section(
            heading="The first questions that the models answer differently",
            cards=_cards(out, curves),
        ),
        Section(heading="Losses", charts=_losses(out)),
        Section(
            heading="Stages",
            columns=STAGE_COLUMNS,
            rows=[stage_row(stage) for stage in summary["stages"]],
            note="Each stage's folder has a page of its own, report.html.",
        ),
    ]
    write_page(out / "report.html", title="mmloom: RLHF", sections=sections)


def gap_charts(curves: Mapping[str, Any]) -> list[Markup]:
    """Draw for each medium what is owed to it, over the steps of SFT and then of RLHF.

    Args:
        curves: of `summary.json`: by run the figures of its checkpoints, in order.
    """
    media = list(curves["sft"][-1]["media"])

    def steps_before(name: str) -> int:
        start = STARTS.get(name)
        return 0 if start is None else steps_before(start) + curves[start][-1]["step"]

    def series(name: str, medium: str) -> list[tuple[float, float]]:
        points, start = curves[name], STARTS.get(name)
        if start is not None:
            points = [{**curves[start][-1], "step": 0}, *points]
        gaps = [one["media"][medium]["seeing"] - one["media"][medium]["blind"] for one in points]
        before = steps_before(name)
        return [(before + one["step"], gap) for one, gap in zip(points, gaps, strict=True)]

    return [
        line_chart(
            f"Owed to {_MEDIA[medium]}",
            {NAMES[name]: series(name, medium) for name in curves},
            unit="share of exact answers, seeing − blind",
            from_zero=True,
        )
        for medium in media
    ]


def _rows(summary: Mapping[str, Any]) -> list[tuple[str | None, ...]]:
    held_out, wrong = summary["held_out"], summary["wrong_medium"]
    return [
        (
            NAMES[name],
            f"{share:.1%}",
            None if name == "sft" else f"{removed(held_out['sft'], share):.0%}",
            f"{wrong[name]:.1%}",
        )
        for name, share in held_out.items()
    ]


def _media_rows(curves: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            NAMES[name],
            _MEDIA[medium],
            f"{one['seeing']:.1%}",
            f"{one['blind']:.1%}",
            f"{one['seeing'] - one['blind']:.1%}",
        )
        for name, points in curves.items()
        for medium, one in points[-1]["media"].items()
    ]


def _kinds(curves: Mapping[str, Any]) -> list[tuple[str, ...]]:
    last = {name: points[-1]["kinds"] for name, points in curves.items()}
    return [(kind, *(f"{one[kind]:.1%}" for one in last.values())) for kind in last["sft"]]


def _cards(out: Path, curves: Mapping[str, Any]) -> list[Card]:
    """Return the media of a few questions with the answers of all models."""
    media = read_media(out / "questions")
    answers: dict[str, dict[str, Answer]] = {}
    for name, points in curves.items():
        for one in read_answers(out / "evaluations" / f"{name}-{points[-1]['step']}", media):
            answers.setdefault(one.id, {})[name] = one
    samples = ShardSet([out / "questions"])
    cards = []
    for row in range(len(samples)):
        sample = samples[row]
        of_models = answers.get(sample.id, {})
        if len({one.answer for one in of_models.values()}) < 2:
            continue
        own = of_models["sft"]
        details = [(NAMES[name], one.answer) for name, one in of_models.items()]
        cards.append(
            Card(
                media=[embed(medium) for medium in sample.media],
                text=own.question,
                details=[("truth", own.truth), *details],
            )
        )
        if len(cards) == _SHOWN:
            break
    return cards


def _losses(out: Path) -> list[Markup]:
    names = {"pt": "MM-PT", **NAMES}
    return [loss_chart(title, read_metrics(out / name)) for name, title in names.items()]
