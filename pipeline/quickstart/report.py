"""What a quickstart shows at its end: a table, a few answers, and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from pipeline.run_folder.charts import bar_chart
from pipeline.run_folder.page import Answer, Charts, Gallery, Section, Table, Text, write_report
from pipeline.run_folder.records import read_metrics
from pipeline.run_folder.report import loss_chart

_SHOWN = 24
_PRINTED = 6


def print_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print the rows of the stages, the accuracies, and a few questions with their answers."""
    console = Console()
    for prediction in _predictions(out, _PRINTED):
        mark = (
            "[green]right[/]" if prediction["correct"] else f"[red]wrong[/] ({prediction['truth']})"
        )
        console.print(f"  {prediction['question']}  →  {prediction['answer']}  {mark}")
    stages = Grid(*_STAGE_COLUMNS, title="what was done")
    for stage in summary["stages"]:
        stages.add_row(*("" if cell is None else str(cell) for cell in _stage_row(stage)))
    console.print(stages)
    scores = Grid("exact answers on held-out handwriting", "share", title="what came of it")
    for row in _accuracy_rows(summary):
        scores.add_row(*row)
    console.print(scores)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)


def write_quickstart_report(out: Path, summary: Mapping[str, Any]) -> None:
    """Write `report.html`: figures, loss curves, drop reasons, pictures with answers."""
    scores = json.loads((out / "sft" / "evaluation" / "scores.json").read_bytes())
    kinds = [
        (kind, row["questions"], *(f"{row[name]:.1%}" for name in ("accuracy", "blind", "chance")))
        for kind, row in scores["kinds"].items()
    ]
    drops = read_manifest(out / "captions").drops
    curves = [
        loss_chart("MM-PT: captions", read_metrics(out / "pt")),
        loss_chart("MM-IT (SFT): dialogues", read_metrics(out / "sft")),
    ]
    sections: list[Section] = [
        Text(heading="What this is", paragraphs=_ABOUT),
        Table(
            heading="Exact answers on held-out handwriting",
            columns=("", "share"),
            rows=_accuracy_rows(summary),
        ),
        Table(
            heading="By kind of question",
            columns=("kind", "questions", "with picture", "blind", "chance"),
            rows=kinds,
        ),
        Table(
            heading="Stages",
            columns=_STAGE_COLUMNS,
            rows=[_stage_row(stage) for stage in summary["stages"]],
        ),
        Charts(heading="Losses", charts=curves),
        Charts(
            heading="Why the ETL dropped rows of the captions' list",
            charts=[bar_chart("Dropped rows by reason", drops, x_label="rows")],
        ),
        Gallery(heading="Questions and answers", answers=_gallery(out)),
    ]
    write_report(out / "report.html", title="mmloom quickstart", sections=sections)


_ABOUT = (
    "A small multimodal language model, built end to end on this machine: lists of URLs were "
    "downloaded, checked, filtered and deduplicated into Arrow shards; a projector was aligned "
    "on captions (MM-PT) and, with LoRA adapters, tuned on dialogues (MM-IT), each under "
    "DeepSpeed ZeRO-3; the second run was killed on purpose and went on from its checkpoint.",
    "The questions are about handwriting that no part of the model has seen. Blind is the same "
    "model without its picture; chance is the commonest answer to each kind of question.",
)

_STAGE_COLUMNS = ("stage", "samples", "seconds", "first loss", "last loss")


def _stage_row(stage: Mapping[str, Any]) -> tuple[str | int | float | None, ...]:
    losses = (stage["loss_first"], stage["loss_last"])
    rounded = (None if loss is None else round(loss, 3) for loss in losses)
    return (stage["name"], stage["samples"], round(stage["seconds"], 1), *rounded)


def _accuracy_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "held_out": "with the picture",
        "blind": "without it (blind)",
        "chance": "chance",
    }
    return [(title, f"{summary['accuracy'][name]:.1%}") for name, title in names.items()]


def _gallery(out: Path) -> list[Answer]:
    shards = ShardSet([out / "questions"], verify=False)
    return [
        Answer(
            picture=shards[index].media[0].data,
            question=prediction["question"],
            answer=prediction["answer"],
            truth=prediction["truth"],
            right=prediction["correct"],
        )
        for index, prediction in enumerate(_predictions(out, _SHOWN))
    ]


def _predictions(out: Path, number: int) -> Sequence[dict[str, Any]]:
    """Return the first predictions; they stand in the order of the questions' shards."""
    path = out / "sft" / "evaluation" / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[:number]]
