"""The result of the any-to-any quickstart: a table on the terminal, and a page with the media."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from etl.report.media import Embedded, embed
from etl.report.page import Card, Section, write_page
from etl.storage.schema import Medium, Sample, sha256, words_of
from etl.storage.shards import ShardSet
from pipeline.generate.replies import REPLIES
from pipeline.quickstart.commands import StageSummary
from pipeline.quickstart.report import STAGE_COLUMNS, stage_row
from pipeline.run_folder.evaluation import EVALUATION, evaluation_sections
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_chart

_SHOWN = 6
"""Replies to a task that the page shows."""
_COLUMNS = ("task", "judged", "ceiling", "floor")
_ABOUT = (
    "One small model that reads text, pictures and sounds and answers with text, pictures, sounds "
    "and videos. Its signal tokens condition frozen latent diffusion models through output "
    "projectors, which were trained on captions (MM-PT) and, with LoRA adapters, on requests "
    "(MM-IT).",
    "Prompts, handwriting and telephones are held out. The judges are no part of the model: an SVC "
    "on scans, the two peaks of a Fourier spectrum, and the path of a centroid. The ceiling is the "
    "frozen generator, prompted with the caption itself; the floor an untrained output projector.",
)


def print_any_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print the table of tasks."""
    console = Console()
    table = Table(*_COLUMNS, title="held-out requests fulfilled")
    for row in _task_rows(summary):
        table.add_row(*row)
    console.print(table)
    answers = summary["understanding"]
    console.print(
        f"questions about pictures: {answers['held_out']:.1%}, blind {answers['blind']:.1%}"
    )
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)


def write_any_report(out: Path, summary: Mapping[str, Any], stages: Sequence[StageSummary]) -> None:
    """Write `report.html`: the figures, losses, and for each task what the model made."""
    curves = [
        loss_chart("MM-PT: captions", read_metrics(out / "pt")),
        loss_chart("MM-IT (SFT): dialogues and requests", read_metrics(out / "sft")),
    ]
    sections = [
        Section(heading="What this is", paragraphs=_ABOUT),
        Section(heading="Held-out requests", columns=_COLUMNS, rows=_task_rows(summary)),
        *_replies(out),
        Section(
            heading="Stages",
            columns=STAGE_COLUMNS,
            rows=[stage_row(asdict(stage)) for stage in stages],
        ),
        Section(heading="Losses", charts=curves),
        *evaluation_sections(out / "sft" / EVALUATION),
    ]
    write_page(out / "report.html", title="mmloom: any to any", sections=sections)


def _task_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (task.replace("_", " "), *(f"{figures[name]:.1%}" for name in _COLUMNS[1:]))
        for task, figures in summary["tasks"].items()
    ]


def _replies(out: Path) -> list[Section]:
    """Return a section for each task: requests, what they show, and what was made for them."""
    folder = out / "media" / "judged"
    replies = {}
    for line in (folder / REPLIES).read_text().splitlines():
        reply = json.loads(line)
        replies[reply["id"]] = reply
    requests = ShardSet([out / "held_out_requests"])
    cards: dict[str, list[Card]] = {}
    for number in range(len(requests)):
        sample = requests[number]
        shown = cards.setdefault(sample.lineage["task"].replace("_", " "), [])
        if len(shown) < _SHOWN and sample.id in replies:
            shown.append(_card(sample, folder, replies[sample.id]))
    return [Section(heading=task, cards=found) for task, found in cards.items()]


def _card(sample: Sample, folder: Path, reply: Mapping[str, Any]) -> Card:
    """Return what a request shows and what was made, the latter last."""
    media = [*map(embed, sample.media[:-1])]
    media += [_embedded(folder / medium["file"], medium["kind"]) for medium in reply["media"]]
    asked = words_of(sample.turns[0].text).strip()
    return Card(media=media, text=asked, answer=words_of(reply["text"]).strip())


def _embedded(file: Path, kind: str) -> Embedded:
    data = file.read_bytes()
    mime = mimetypes.guess_type(file.name)[0] or ""
    width = 1 if kind == "image" else None  # small: shown enlarged
    return embed(Medium(kind=kind, data=data, mime=mime, sha256=sha256(data), width=width))
