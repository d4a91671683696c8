"""Q-Bench, perception (LLVisionQA): multiple choice about low-level vision (Wu et al. 2024).

https://huggingface.co/datasets/nanyangtu/LLVisionQA-QBench (arXiv:2309.14181):

    DATA/llvisionqa_dev.json, or llvisionqa_test.json, whose answers are not published
    DATA/images_llvisionqa/….jpg, or images/….jpg

Scored as Q-Instruct's `eval_scripts/llava_v1.5/eval_qbench_mcq.py` (Q-Future): the letter of the
right option has to stand in the response. Predictions: the questions' own objects, each with a
`response`, one after another (as LLaVA's `model_vqa_qbench.py` writes them) or as a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from etl.cli import UserError
from pipeline.evaluate.benchmark import (
    LETTERS,
    Answered,
    Benchmark,
    Headline,
    Needed,
    Question,
    Rules,
    percent,
)
from pipeline.evaluate.metrics import Metrics, accuracies
from pipeline.evaluate.prediction_files import build, read_list, read_text
from pipeline.evaluate.prompts import lettered

_SOURCE = "https://huggingface.co/datasets/nanyangtu/LLVisionQA-QBench"
_FILES = ("llvisionqa_dev.json", "llvisionqa_test.json")
_FOLDERS = ("images_llvisionqa", "images")
_TYPES = ("yes-or-no", "what", "how")
_CONCERNS = ("distortion", "others", "in-context distortion", "in-context others")
"""By number, in the order of Q-Bench's leaderboard."""


def read(folder: Path) -> list[Question]:
    """Read the questions of dev, or else of test; their ids are their numbers in the file."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has none of {', '.join(_FILES)}")
    images = next((name for name in _FOLDERS if (folder / name).is_dir()), _FOLDERS[0])
    want = "img_path, question, candidates and correct_ans"
    return [
        build(f"{path}: question {number}", want, partial(_question, number, value, path, images))
        for number, value in enumerate(read_list(path))
    ]


def _question(number: int, value: Mapping[str, Any], path: Path, images: str) -> Question:
    options = tuple(map(str, value["candidates"]))
    answer = LETTERS[options.index(value["correct_ans"])] if "correct_ans" in value else ""
    return Question(
        id=str(number),
        split=path.stem.rpartition("_")[2],
        text=value["question"],
        answer=answer,
        images=(f"{images}/{value['img_path']}",),
        options=options,
        labels={
            "image": value["img_path"],
            "type": _TYPES[value["type"]] if "type" in value else "",
            "concern": _CONCERNS[value["concern"]] if "concern" in value else "",
        },
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the accuracy of all questions, by type and by concern."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        row = (float(question.answer in answer), question.unit)
        for name in ("all", question.labels["type"], question.labels["concern"]):
            if name:
                rows.setdefault(name, []).append(row)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    names = {(question.labels["image"], question.text): question.id for question in questions}
    found = []
    for number, value in enumerate(_objects(path), start=1):
        where = f"{path}: object {number}"
        key, response = build(
            where,
            "img_path, question and response",
            lambda value: ((value["img_path"], value["question"]), str(value["response"])),
            value,
        )
        if key not in names:
            raise UserError(f"{where}: no question {key[1]!r} about {key[0]!r}")
        found.append((names[key], response))
    return found


def _objects(path: Path) -> list[Any]:
    """Return the objects of a list, or those that stand one after another without separators."""
    text, decoder = read_text(path, "objects with a response"), json.JSONDecoder()
    found: list[Any] = []
    position = 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError as error:
            raise UserError(f"{path}: not JSON after {len(found)} objects ({error})") from None
        found += value if isinstance(value, list) else [value]
    return found


def _save(answered: Sequence[Answered]) -> dict[str, bytes]:
    values = [
        {
            "img_path": question.labels["image"],
            "question": question.text,
            "candidates": list(question.options),
            "response": answer,
        }
        for question, answer in answered
    ]
    return {"qbench.json": json.dumps(values).encode()}


QBENCH = Benchmark(
    name="qbench",
    read=read,
    metrics=metrics,
    prompt=lettered,
    load=_load,
    save=_save,
    rules=Rules(missing="not counted", repeated="each", unknown="error"),
    layout=(
        Needed(paths=_FILES, source=_SOURCE),
        Needed(paths=_FOLDERS, source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="Q-Bench", value=percent("all", "accuracy")),),
)
