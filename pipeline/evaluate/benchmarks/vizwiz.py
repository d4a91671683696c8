"""VizWiz: questions that blind people asked about their photographs (Gurari et al. 2018).

https://vizwiz.org/tasks-and-datasets/vqa/ (arXiv:1802.08218):

    DATA/{val,test}.json, or in DATA/Annotations/    val if it is there; test has no answers
    DATA/{val,test}/VizWiz_….jpg

Scored by the challenge's `vqaEval.py`, which normalises the prediction but not the ten human
answers, and fails without a prediction for each image; of two the last one counts.
Predictions of other images are refused, as by VQA's loader.
Predictions: `[{"image", "answer"}]`.
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
from pipeline.evaluate.benchmarks.vqa import accuracy_by_type, most_common
from pipeline.evaluate.prediction_files import build, load_list, read_list, save_json
from pipeline.evaluate.prompts import SHORT_ANSWER
from pipeline.evaluate.vqa_accuracy import normalise_textvqa, vizwiz_accuracy

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""LLaVA-1.5's wording for VizWiz (Liu et al. 2023, arXiv:2310.03744, table of prompts)."""
_FILES = ("val.json", "Annotations/val.json", "test.json", "Annotations/test.json")


def read(folder: Path) -> list[Question]:
    """Read the validation split, or else the test split."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has none of {', '.join(_FILES)}")
    return [
        build(f"{path}: question {number}", "image and question", partial(_question, value, path))
        for number, value in enumerate(read_list(path), start=1)
    ]


def _question(value: Mapping[str, Any], path: Path) -> Question:
    answers = tuple(str(one["answer"]) for one in value.get("answers", ()))
    return Question(
        id=value["image"],
        split=path.stem,
        text=value["question"],
        answer=most_common(answers),
        answers=answers,
        images=(f"{path.stem}/{value['image']}",),
        labels={"answer_type": value.get("answer_type", "")},
    )


def _prompt(question: Question) -> str:
    return f"{question.text}\n{UNANSWERABLE}\n{SHORT_ANSWER}"


def _server_answers(answered: Sequence[Answered]) -> object:
    return [
        {"image": question.id, "answer": normalise_textvqa(answer)} for question, answer in answered
    ]


VIZWIZ = Benchmark(
    name="vizwiz",
    read=read,
    metrics=partial(accuracy_by_type, accuracy=vizwiz_accuracy),
    prompt=_prompt,
    load=load_list("image", "answer"),
    save=save_json("vizwiz.json", _server_answers),
    rules=Rules(missing="error", repeated="last", unknown="error"),
    layout=(
        Needed(paths=_FILES, source="https://vizwiz.org/tasks-and-datasets/vqa/"),
        Needed(
            paths=("val", "test"),
            source="https://vizwiz.org/tasks-and-datasets/vqa/",
            images=True,
        ),
    ),
    headlines=(Headline(column="VizWiz", value=percent("all", "accuracy")),),
)
