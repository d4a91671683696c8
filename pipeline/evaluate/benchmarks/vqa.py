"""VQAv2 and OKVQA: questions about COCO's images with ten human answers.

VQAv2 (Goyal et al. 2017, arXiv:1612.00837), https://visualqa.org/download.html:

    DATA/v2_OpenEnded_mscoco_{val2014,test-dev2015,test2015}_questions.json    the first of them
    DATA/v2_mscoco_val2014_annotations.json                                    only val2014 has one
    DATA/{val2014,test2015}/COCO_…_….jpg

OKVQA (Marino et al. 2019, arXiv:1906.00067), https://okvqa.allenai.org/download.html:

    DATA/OpenEnded_mscoco_val2014_questions.json, DATA/mscoco_val2014_annotations.json
    DATA/val2014/COCO_val2014_….jpg

Both are scored by VQA's `vqaEval.py` (GT-Vision-Lab/VQA), which wants an answer to each question
and no others; of two answers the last one counts. Predictions: `[{"question_id", "answer"}]`.
"""

from __future__ import annotations

from collections import Counter
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
from pipeline.evaluate.prediction_files import build, load_list, read_json, save_json
from pipeline.evaluate.prompts import short_answer
from pipeline.evaluate.vqa_accuracy import Accuracy, normalise_textvqa, vqa_accuracy

_SPLITS = ("val2014", "test-dev2015", "test2015")


def read_vqa(folder: Path, *, prefix: str) -> list[Question]:
    """Read the first split of a folder, with its answers if there are any."""
    paths = [(s, folder / f"{prefix}OpenEnded_mscoco_{s}_questions.json") for s in _SPLITS]
    found = [(split, path) for split, path in paths if path.is_file()]
    if not found:
        raise UserError(f"{folder}: has none of {', '.join(path.name for _, path in paths)}")
    split, path = found[0]
    truths: dict[str, Mapping[str, Any]] = {}
    annotations = folder / f"{prefix}mscoco_{split}_annotations.json"
    if annotations.is_file():
        truths = build(
            str(annotations),
            "annotations with question_id",
            lambda: {str(one["question_id"]): one for one in read_json(annotations)["annotations"]},
        )
    values = build(str(path), "questions", lambda: list(read_json(path)["questions"]))
    return [
        build(
            f"{path}: question {number}",
            "question_id, image_id and question, and answers and answer_type in the annotations",
            partial(_question, value, truths, split),
        )
        for number, value in enumerate(values, start=1)
    ]


def _question(
    value: Mapping[str, Any], truths: Mapping[str, Mapping[str, Any]], split: str
) -> Question:
    name = str(value["question_id"])
    truth = truths[name] if truths else {}
    answers = tuple(str(one["answer"]) for one in truth["answers"]) if truths else ()
    images = "test2015" if split.startswith("test") else split
    return Question(
        id=name,
        split=split,
        text=value["question"],
        answer=most_common(answers),
        answers=answers,
        images=(f"{images}/COCO_{images}_{int(value['image_id']):012d}.jpg",),
        labels={"answer_type": truth["answer_type"]} if truths else {},
    )


def most_common(answers: Sequence[str]) -> str:
    """Return the answer that most people gave, the first of several; empty without answers."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def accuracy_by_type(answered: Sequence[Answered], accuracy: Accuracy) -> Metrics:
    """Return the mean accuracy of all questions and of each type of answer."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        row = (accuracy(answer, question.answers), question.unit)
        rows["all"].append(row)
        if question.labels.get("answer_type"):
            rows.setdefault(question.labels["answer_type"], []).append(row)
    return accuracies(rows)


def _server_answers(answered: Sequence[Answered]) -> object:
    return [
        {"question_id": int(question.id), "answer": normalise_textvqa(answer)}
        for question, answer in answered
    ]


_RULES = Rules(missing="error", repeated="last", unknown="error")

VQAV2 = Benchmark(
    name="vqav2",
    read=partial(read_vqa, prefix="v2_"),
    metrics=partial(accuracy_by_type, accuracy=vqa_accuracy),
    prompt=short_answer,
    load=load_list("question_id", "answer"),
    save=save_json("vqav2.json", _server_answers),
    rules=_RULES,
    layout=(
        Needed(
            paths=tuple(f"v2_OpenEnded_mscoco_{split}_questions.json" for split in _SPLITS),
            source="https://visualqa.org/download.html",
        ),
        Needed(
            paths=("val2014", "test2015"), source="https://cocodataset.org/#download", images=True
        ),
    ),
    headlines=(Headline(column="VQAv2", value=percent("all", "accuracy")),),
)

OKVQA = Benchmark(
    name="okvqa",
    read=partial(read_vqa, prefix=""),
    metrics=partial(accuracy_by_type, accuracy=vqa_accuracy),
    prompt=short_answer,
    load=load_list("question_id", "answer"),
    save=save_json("okvqa.json", _server_answers),
    rules=_RULES,
    layout=(
        Needed(
            paths=("OpenEnded_mscoco_val2014_questions.json",),
            source="https://okvqa.allenai.org/download.html",
        ),
        Needed(
            paths=("mscoco_val2014_annotations.json",),
            source="https://okvqa.allenai.org/download.html",
        ),
        Needed(paths=("val2014",), source="https://cocodataset.org/#download", images=True),
    ),
    headlines=(Headline(column="OKVQA", value=percent("all", "accuracy")),),
)
