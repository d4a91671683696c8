"""SEED-I: the nine image dimensions of SEED-Bench (Li et al. 2023, arXiv:2307.16125).

https://github.com/AILab-CVC/SEED-Bench:

    DATA/SEED-Bench.json
    DATA/SEED-Bench-image/…

Scored as LLaVA's `convert_seed_for_submission.py`: the prediction has to be the right letter; a
question without one is wrong, of two the last one counts, others (of videos) are ignored. The
leaderboard's own `eval.py` takes the option with the lowest loss (`--choose likelihood`).
Predictions: lines with `question_id` and `prediction`, or LLaVA's with `text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from pipeline.evaluate.prediction_files import build, load_list, read_json, save_json
from pipeline.evaluate.prompts import lettered

_SOURCE = "https://github.com/AILab-CVC/SEED-Bench"
_FILE = "SEED-Bench.json"


def read(folder: Path) -> list[Question]:
    """Read the questions about images."""
    path = folder / _FILE
    document = build(str(path), "questions and question_type", lambda: dict(read_json(path)))
    types, values = build(
        str(path),
        "questions, and question_type: name → number",
        lambda: (
            {number: name for name, number in document["question_type"].items()},
            [value for value in document["questions"] if value["data_type"] == "image"],
        ),
    )
    want = "question_id, question, choice_a to choice_d, answer, data_id and question_type_id"
    return [
        build(f"{path}: image question {number}", want, partial(_question, value, types))
        for number, value in enumerate(values, start=1)
    ]


def _question(value: Mapping[str, Any], types: Mapping[int, str]) -> Question:
    return Question(
        id=str(value["question_id"]),
        split="image",
        text=value["question"],
        answer=value["answer"],
        images=(f"SEED-Bench-image/{value['data_id']}",),
        options=tuple(str(value[f"choice_{letter}"]) for letter in "abcd"),
        labels={"type": types[value["question_type_id"]]},
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the accuracy of all questions about images, and of each dimension."""
    rows: dict[str, list[tuple[float, str]]] = {"image": []}
    for question, answer in answered:
        row = (float(answer == question.answer), question.unit)
        for name in ("image", question.labels["type"]):
            rows.setdefault(name, []).append(row)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    values = read_json(path)
    first = values[0] if isinstance(values, list) and values else values
    llava = isinstance(first, dict) and "text" in first
    return load_list("question_id", "text" if llava else "prediction")(path, questions)


SEEDBENCH = Benchmark(
    name="seedbench",
    read=read,
    metrics=metrics,
    prompt=lettered,
    load=_load,
    save=save_json(
        "seedbench.jsonl",
        lambda answered: [
            {"question_id": question.id, "prediction": answer} for question, answer in answered
        ],
        lines=True,
    ),
    rules=Rules(missing="wrong", repeated="last", unknown="ignored"),
    layout=(
        Needed(paths=(_FILE,), source=_SOURCE),
        Needed(paths=("SEED-Bench-image",), source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="SEED-I", value=percent("image", "accuracy")),),
)
