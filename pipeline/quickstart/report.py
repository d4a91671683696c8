"""The result of a quickstart: tables and a few answers on the terminal, and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from etl.report.job_report import drops_chart
from etl.report.page import Section, write_page
from etl.storage.manifest import read_manifest
from pipeline.run_folder.evaluation import EVALUATION, evaluation_sections
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_chart

_PRINTED_ANSWERS = 6


def print_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print a few questions with their answers, the stages, and the accuracies."""
    console = Console()
    for prediction in _predictions(out, _PRINTED_ANSWERS):
        mark = (
            "[green]correct[/]"
            if prediction["correct"]
            else f"[red]wrong[/] ({prediction['truth']})"
        )
        console.print(f"  {prediction['question']}  →  {prediction['answer']}  {mark}")
    stages = Table(*STAGE_COLUMNS, title="stages")
    for stage in summary["stages"]:
        stages.add_row(*("" if cell is None else str(cell) for cell in stage_row(stage)))
    console.print(stages)
    scores = Table("exact answers on held-out handwriting", "share", title="accuracy")
    for row in _accuracy_rows(summary):
        scores.add_row(*row)
    console.print(scores)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)


def write_quickstart_report(out: Path, summary: Mapping[str, Any]) -> None:
    """Write `report.html`: stages, loss curves, drop reasons, scores, images with answers."""
    curves = [
        loss_chart("MM-PT: captions", read_metrics(out / "pt")),
        loss_chart("MM-IT (SFT): dialogues", read_metrics(out / "sft")),
    ]
    sections = [
        Section(heading="What this is", tiles=_accuracy_rows(summary), paragraphs=_ABOUT),
        Section(
            heading="Stages",
            columns=STAGE_COLUMNS,
            rows=[stage_row(stage) for stage in summary["stages"]],
            note="Each stage's folder has a page of its own, report.html.",
        ),
        Section(heading="Losses", charts=curves),
        Section(
            heading="Why the ETL dropped rows of the list of captions",
            charts=[drops_chart(read_manifest(out / "captions").drops)],
        ),
        *evaluation_sections(out / "sft" / EVALUATION),
    ]
    write_page(out / "report.html", title="mmloom quickstart", sections=sections)


_ABOUT = (
    "A small multimodal language model, built end to end on this machine: lists of URLs were "
    "downloaded, checked, filtered and deduplicated into Arrow shards; a projector was aligned "
    "on captions (MM-PT) and, with LoRA adapters, tuned on dialogues (MM-IT), each under "
    "DeepSpeed ZeRO-3; the second run was killed on purpose and resumed from its checkpoint.",
    "The questions are about handwriting that no part of the model was trained on.",
)

STAGE_COLUMNS = ("stage", "samples", "seconds", "first loss", "last loss")
"""Of the table of stages."""


def stage_row(stage: Mapping[str, Any]) -> tuple[str | int | float | None, ...]:
    """Return a stage's row of the table."""
    losses = (stage["loss_first"], stage["loss_last"])
    rounded = (None if loss is None else round(loss, 3) for loss in losses)
    return (stage["name"], stage["samples"], round(stage["seconds"], 1), *rounded)


def _accuracy_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "held_out": "with the image",
        "blind": "without the image (blind)",
        "chance": "chance",
    }
    return [(title, f"{summary['accuracy'][name]:.1%}") for name, title in names.items()]


def _predictions(out: Path, number: int) -> Sequence[dict[str, Any]]:
    path = out / "sft" / EVALUATION / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[:number]]
