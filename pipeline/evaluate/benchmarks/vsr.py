"""VSR: whether a statement about the positions of two things is true (Liu et al. 2023).

https://github.com/cambridgeltl/visual-spatial-reasoning (arXiv:2205.00363), data/splits/zeroshot:

    DATA/test.jsonl
    DATA/images/….jpg

Scored as the official `analysis_scripts/eval_compute_acc_by_rel.py`: accuracy, of all and by
relation, of a file with 0 or 1 per line; it fails on other lines and on fewer lines than
statements, and ignores further ones. Published models are asked with MiniGPT-v2's wording
(Vision-CAIR/MiniGPT-4, `eval_vqa.py`), which counts a reply only if it is the right one of "true"
and "false".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from etl.cli import UserError
from pipeline.evaluate.benchmark import (
    Answered,
    Benchmark,
    Headline,
    Needed,
    Question,
    Rules,
    percent,
)
from pipeline.evaluate.metrics import Metrics, accuracies
from pipeline.evaluate.prediction_files import build, read_json_lines, read_text

_FILE = "test.jsonl"
_WORDS = ("false", "true")
"""By label."""


def read(folder: Path) -> list[Question]:
    """Read the statements; their ids are their line numbers."""
    want = "image, caption, label and relation"
    return [
        build(where, want, partial(_question, number, value))
        for number, (where, value) in enumerate(read_json_lines(folder / _FILE), start=1)
    ]


def _question(number: int, value: Mapping[str, Any]) -> Question:
    return Question(
        id=str(number),
        split="test",
        text=value["caption"],
        answer=_WORDS[value["label"]],
        images=(f"images/{value['image']}",),
        labels={"relation": value["relation"]},
    )


def _prompt(question: Question) -> str:
    return f"Based on the image, is this statement true or false? {question.text}"


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the accuracy of all statements, and of those with each relation."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        point = (float(answer.strip().lower() == question.answer), question.unit)
        rows["all"].append(point)
        rows.setdefault(f"relation/{question.labels['relation']}", []).append(point)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(read_text(path, "lines of 0 or 1").splitlines(), start=1):
        if line.strip() not in ("0", "1"):
            raise UserError(f"{path}:{number}: {line.strip()!r}, want 0 (false) or 1 (true)")
        found.append((str(number), _WORDS[int(line)]))
    return found


def _save(answered: Sequence[Answered]) -> dict[str, bytes]:
    labels = [str(int(answer.strip().lower() == _WORDS[1])) for _, answer in answered]
    return {"vsr_predictions.txt": ("\n".join(labels) + "\n").encode()}


VSR = Benchmark(
    name="vsr",
    read=read,
    metrics=metrics,
    prompt=_prompt,
    load=_load,
    save=_save,
    rules=Rules(missing="error", repeated="error", unknown="ignored"),
    layout=(
        Needed(
            paths=(_FILE,),
            source="https://github.com/cambridgeltl/visual-spatial-reasoning,"
            " data/splits/zeroshot/test.jsonl",
        ),
        Needed(paths=("images",), source="https://cocodataset.org/#download", images=True),
    ),
    headlines=(Headline(column="VSR", value=percent("all", "accuracy")),),
)
