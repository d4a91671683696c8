"""Hateful Memes: whether a meme is hateful, by its picture and its text (Kiela et al. 2020).

https://hatefulmemeschallenge.com/ (arXiv:2005.04790), the first of these files:

    DATA/{dev_seen,dev,test_seen}.jsonl    lines with id, img, text, and label (test without)
    DATA/img/….png

Scored by the challenge's measures: the area under the ROC curve of the probability of hateful, and
the accuracy of the label. Predictions: a CSV with `id,proba,label`, one row per meme (DrivenData's
submission format, as MMF's `generate_binary_prediction` writes it). A model is asked with
MiniGPT-v2's wording (Vision-CAIR/MiniGPT-4, `HMEvalData`), and the likelihoods of "yes" and "no"
give the probability, as for InstructBLIP (Dai et al. 2023, arXiv:2305.06500, appendix). The
survey's figures of MiniGPT-v2 are accuracies of written answers instead.
"""

from __future__ import annotations

import csv
import io
import math
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
from pipeline.evaluate.metrics import Metrics, auc_metric, mean_metric
from pipeline.evaluate.prediction_files import build, read_json_lines, read_text

_FILES = ("dev_seen.jsonl", "dev.jsonl", "test_seen.jsonl")
_WORDS = ("no", "yes")
"""By label."""


def read(folder: Path) -> list[Question]:
    """Read the memes of the first split that a folder has."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has none of {', '.join(_FILES)}")
    return [
        build(where, "id, img, text and label", partial(_question, value, path.stem))
        for where, value in read_json_lines(path)
    ]


def _question(value: Mapping[str, Any], split: str) -> Question:
    return Question(
        id=str(int(value["id"])),
        split=split,
        text=value["text"],
        answer=_WORDS[value["label"]] if "label" in value else "",
        images=(value["img"],),
        options=_WORDS,
    )


def _prompt(question: Question) -> str:
    return (
        f"This is an image writting '{question.text}'. Is this image hateful?"
        " Answer yes or no. Answer:"
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return AUC and accuracy of predictions "PROBABILITY LABEL"."""
    pairs = [_probability_and_label(question, answer) for question, answer in answered]
    hateful = [question.answer == _WORDS[1] for question, _ in answered]
    units = [question.unit for question, _ in answered]
    right = [float((label == 1) == one) for (_, label), one in zip(pairs, hateful, strict=True)]
    return {
        "all": {
            "auc": auc_metric([probability for probability, _ in pairs], hateful, units),
            "accuracy": mean_metric(right, units),
        }
    }


def _probability_and_label(question: Question, answer: str) -> tuple[float, int]:
    parts = answer.split()
    want = "a probability from 0 to 1 and a label of 0 or 1"
    probability, label = build(f"id {question.id}", want, lambda: (float(parts[0]), int(parts[1])))
    if not 0 <= probability <= 1 or label not in (0, 1):
        raise UserError(f"id {question.id}: {answer!r}, want {want}")
    return probability, label


def _prediction(question: Question, reply: str) -> str:
    """Return a probability with its label; a written answer is a probability of 0 or 1."""
    del question
    try:
        probability = float(reply.split(maxsplit=1)[0])
    except (IndexError, ValueError):
        probability = float(reply.strip().lower().startswith("yes"))
    return f"{probability:.9g} {int(probability > 0.5)}"


def _probability(scores: Sequence[float]) -> str:
    """Return the probability of "yes" against "no", of their log-likelihoods."""
    no, yes = scores
    return f"{1 / (1 + math.exp(min(no - yes, 700))):.9g}"


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    del questions
    rows = csv.DictReader(io.StringIO(read_text(path, "a CSV with id, proba and label")))
    return [
        build(
            f"{path}:{number}",
            "id, proba and label",
            lambda row: (str(int(row["id"])), f"{row['proba'].strip()} {row['label'].strip()}"),
            row,
        )
        for number, row in enumerate(rows, start=2)
    ]


def _save(answered: Sequence[Answered]) -> dict[str, bytes]:
    lines = ["id,proba,label"]
    lines += [",".join((question.id, *answer.split())) for question, answer in answered]
    return {"hateful_memes.csv": ("\n".join(lines) + "\n").encode()}


HATEFUL_MEMES = Benchmark(
    name="hateful_memes",
    read=read,
    metrics=metrics,
    prompt=_prompt,
    ranked=_prompt,
    ask="likelihood",
    chosen=_probability,
    prediction=_prediction,
    load=_load,
    save=_save,
    rules=Rules(missing="error", repeated="error", unknown="error"),
    layout=(
        Needed(paths=_FILES, source="https://hatefulmemeschallenge.com/"),
        Needed(paths=("img",), source="https://hatefulmemeschallenge.com/", images=True),
    ),
    headlines=(Headline(column="HM", value=percent("all", "auc")),),
)
