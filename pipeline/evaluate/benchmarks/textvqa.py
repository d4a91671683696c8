"""TextVQA: questions about the text in an image (Singh et al. 2019, arXiv:1904.08920).

https://textvqa.org/dataset/:

    DATA/TextVQA_0.5.1_val.json
    DATA/TextVQA_Rosetta_OCR_v0.2_val.json    optional: its words are shown, as in LLaVA-1.5
    DATA/train_images/….jpg

Scored by MMF's evaluator as LLaVA calls it (`eval_textvqa.py`): the mean is over the predictions,
so that a question without one is not counted and one with two counts twice. Predictions: the
server's `[{"question_id", "answer"}]`, or LLaVA's lines with `question_id` (of the image), `prompt`
and `text`.
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
from pipeline.evaluate.prediction_files import build, load_list, read_json, save_json
from pipeline.evaluate.prompts import SHORT_ANSWER
from pipeline.evaluate.vqa_accuracy import textvqa_accuracy

_FILE = "TextVQA_0.5.1_val.json"
_OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
_OCR_LINE = "Reference OCR token: "


def read(folder: Path) -> list[Question]:
    """Read the questions, and the words that OCR found in their images if they are there."""
    path, ocr = folder / _FILE, folder / _OCR
    words: dict[str, str] = {}
    if ocr.is_file():
        words = build(
            str(ocr),
            "data with image_id and ocr_tokens",
            lambda: {one["image_id"]: ", ".join(one["ocr_tokens"]) for one in _data(ocr)},
        )
    return [
        build(
            f"{path}: question {number}",
            "question_id, image_id, question and answers",
            partial(_question, value, words),
        )
        for number, value in enumerate(_data(path), start=1)
    ]


def _data(path: Path) -> list[Mapping[str, Any]]:
    return build(str(path), "an object with data", lambda: list(read_json(path)["data"]))


def _question(value: Mapping[str, Any], words: Mapping[str, str]) -> Question:
    answers = tuple(map(str, value["answers"]))
    image = value["image_id"]
    return Question(
        id=str(value["question_id"]),
        split="val",
        text=value["question"],
        answer=most_common(answers),
        answers=answers,
        images=(f"train_images/{image}.jpg",),
        labels={"image": image} | ({"ocr": words.get(image, "")} if words else {}),
    )


def _prompt(question: Question) -> str:
    ocr = [_OCR_LINE + question.labels["ocr"]] if "ocr" in question.labels else []
    return "\n".join([question.text, *ocr, SHORT_ANSWER])


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    values = read_json(path)
    llava = isinstance(values, list) and any(isinstance(v, dict) and "text" in v for v in values)
    if not llava:
        return load_list("question_id", "answer")(path, questions)
    by_prompt = {(q.labels["image"], q.text.lower()): q.id for q in questions}
    found = []
    for number, value in enumerate(values, start=1):
        where = f"{path}: prediction {number}"
        key = build(
            where,
            "question_id, prompt and text",
            lambda value: (value["question_id"], _asked(value["prompt"])),
            value,
        )
        if key not in by_prompt:
            raise UserError(f"{where}: no question {key[1]!r} about image {key[0]!r}")
        found.append((by_prompt[key], str(value["text"])))
    return found


def _asked(prompt: str) -> str:
    """Return the question in a prompt: its first line that is neither OCR nor instruction."""
    return next(line for line in prompt.split("\n") if not line.startswith(_OCR_LINE)).lower()


def _server_answers(answered: Sequence[Answered]) -> object:
    return [{"question_id": int(question.id), "answer": answer} for question, answer in answered]


TEXTVQA = Benchmark(
    name="textvqa",
    read=read,
    metrics=partial(accuracy_by_type, accuracy=textvqa_accuracy),
    prompt=_prompt,
    load=_load,
    save=save_json("textvqa.json", _server_answers),
    rules=Rules(missing="not counted", repeated="each", unknown="error"),
    layout=(
        Needed(paths=(_FILE,), source="https://textvqa.org/dataset/"),
        Needed(paths=("train_images",), source="https://textvqa.org/dataset/", images=True),
    ),
    headlines=(Headline(column="VQA-T", value=percent("all", "accuracy")),),
)
