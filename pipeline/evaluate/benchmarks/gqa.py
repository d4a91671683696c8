"""GQA: compositional questions about images with scene graphs (Hudson and Manning 2019).

https://cs.stanford.edu/people/dorarad/gqa/download.html (arXiv:1902.09506):

    DATA/testdev_balanced_questions.json
    DATA/images/….jpg

Scored by the official `eval.py`: an answer has to equal the true one. Without a prediction for each
question it fails, of two the last one counts, and others are ignored. Validity and plausibility
need the choices file, which testdev lacks. Predictions: `[{"questionId", "prediction"}]`; LLaVA's
`convert_gqa_for_eval.py` removes final full stops from a reply and lower-cases it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.benchmark import (
    Answered,
    Benchmark,
    Headline,
    Needed,
    Question,
    Rules,
    percent,
)
from pipeline.evaluate.metrics import Array, Metric, Metrics, accuracies, ratio
from pipeline.evaluate.prediction_files import build, load_list, read_json, save_json
from pipeline.evaluate.prompts import short_answer

_FILE = "testdev_balanced_questions.json"


def read(folder: Path) -> list[Question]:
    """Read the balanced questions of testdev."""
    path = folder / _FILE
    values = build(str(path), "an object of questions", lambda: dict(read_json(path)))
    want = "isBalanced, imageId, question, answer, types and groups"
    found = [
        build(f"{path}: {name}", want, partial(_question, name, value))
        for name, value in values.items()
    ]
    return [question for question in found if question is not None]


def _question(name: str, value: Mapping[str, Any]) -> Question | None:
    if not value["isBalanced"]:
        return None
    types, group = value["types"], value["groups"]["global"]
    return Question(
        id=name,
        split="testdev",
        text=value["question"],
        answer=value["answer"],
        images=(f"images/{value['imageId']}.jpg",),
        labels={
            "structural": types["structural"],
            "semantic": types["semantic"],
            **({} if group is None else {"group": group}),
        },
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return accuracy, of all and by type, and the chi-square distance of the distributions."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        structural, semantic = question.labels["structural"], question.labels["semantic"]
        kind = "open" if structural == "query" else "binary"
        row = (float(answer == question.answer), question.unit)
        for name in ("all", kind, f"structural/{structural}", f"semantic/{semantic}"):
            rows.setdefault(name, []).append(row)
    found = accuracies(rows)
    found["all"]["distribution"] = _distribution(answered)
    return found


def _distribution(answered: Sequence[Answered]) -> Metric:
    """Return the official chi-square statistic, lower is better, divided by 100.

    For each global group of questions: Σ (predicted − true)² / true over its true answers, weighted
    by the group's size.
    """
    some = [one for one in answered if "group" in one[0].labels]
    cells = {
        cell: number
        for number, cell in enumerate(dict.fromkeys((q.labels["group"], q.answer) for q, _ in some))
    }
    outside = len(cells)
    true_n = np.array([cells[q.labels["group"], q.answer] for q, _ in some], dtype=int)
    predicted_n = np.array([cells.get((q.labels["group"], a), outside) for q, a in some], dtype=int)
    groups = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in cells))}
    group_c = np.array([groups[name] for name, _ in cells], dtype=int)

    def at(w_n: Array) -> float:
        true_c = np.bincount(true_n, w_n, minlength=outside)
        predicted_c = np.bincount(predicted_n, w_n, minlength=outside + 1)[:outside]
        possible = true_c > 0
        score_c = np.zeros(outside)
        score_c[possible] = (predicted_c[possible] - true_c[possible]) ** 2 / true_c[possible]
        sizes = np.bincount(group_c, true_c, minlength=len(groups))
        scores = np.bincount(group_c, score_c, minlength=len(groups))
        return ratio(scores @ sizes, sizes.sum()) / 100

    return Metric(units=[question.unit for question, _ in some], at=at)


def _server_answers(answered: Sequence[Answered]) -> object:
    return [{"questionId": question.id, "prediction": answer} for question, answer in answered]


GQA = Benchmark(
    name="gqa",
    read=read,
    metrics=metrics,
    prompt=short_answer,
    prediction=lambda _, reply: reply.rstrip(".").lower(),
    load=load_list("questionId", "prediction"),
    save=save_json("testdev_balanced_predictions.json", _server_answers),
    rules=Rules(missing="error", repeated="last", unknown="ignored"),
    layout=(
        Needed(paths=(_FILE,), source="https://cs.stanford.edu/people/dorarad/gqa/download.html"),
        Needed(
            paths=("images",),
            source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
            images=True,
        ),
    ),
    headlines=(Headline(column="GQA", value=percent("all", "accuracy")),),
)
