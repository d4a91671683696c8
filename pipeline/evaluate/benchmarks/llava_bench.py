"""LLaVA-W, LLaVA-Bench (In-the-Wild): natural questions, graded against GPT-4 (Liu et al. 2023).

https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild (arXiv:2304.08485):

    DATA/questions.jsonl, DATA/context.jsonl, DATA/answers_gpt4.jsonl
    DATA/images/….jpg

A judge that knows the image by its description compares GPT-4's answer with the model's, and gives
each 1 to 10 (haotian-liu/LLaVA, `eval_gpt_review_bench.py`, `table/rule.json`). Scored as
`summarize_gpt_review.py`: the model's mean over GPT-4's mean, in percent, the means rounded to
three digits; a reply that is not two numbers separated by one space counts as -1 and -1. Published
figures are of gpt-4-0314 as the judge. Predictions: lines with `question_id` and `text`; grades:
the script's reviews, lines with `question_id` and `tuple`.
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
    Grading,
    Headline,
    Needed,
    Question,
    Rules,
)
from pipeline.evaluate.metrics import Array, Metric, Metrics, ratio, sums_metric
from pipeline.evaluate.prediction_files import (
    build,
    load_list,
    read_json,
    read_json_lines,
    save_json,
)

_SOURCE = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
_ROLE = "You are a helpful and precise assistant for checking the quality of the answer."
_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to"
    " the user question displayed above. The user asks the question on observing an image. For your"
    " reference, the visual content in the image is represented with a few sentences describing the"
    " image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each"
    " assistant receives an overall score on a scale of 1 to 10, where a higher score indicates"
    " better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for"
    " Assistant 1 and 2, respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation,"
    " avoiding any potential bias and ensuring that the order in which the responses were presented"
    " does not affect your judgment."
)
"""The rule of all three categories in LLaVA's `table/rule.json`."""


def read(folder: Path) -> list[Question]:
    """Read the questions, with the images' descriptions and GPT-4's answers as labels."""
    captions = {
        build(where, "image", lambda value: value["image"], value): value
        for where, value in read_json_lines(folder / "context.jsonl")
    }
    references = {
        build(where, "question_id", lambda value: value["question_id"], value): value
        for where, value in read_json_lines(folder / "answers_gpt4.jsonl")
    }
    want = "question_id, image, text and category, with a context and an answer of GPT-4"
    return [
        build(where, want, partial(_question, value, captions, references))
        for where, value in read_json_lines(folder / "questions.jsonl")
    ]


def _question(
    value: Mapping[str, Any],
    captions: Mapping[str, Mapping[str, Any]],
    references: Mapping[Any, Mapping[str, Any]],
) -> Question:
    caption = captions[value["image"]]["caption"]
    reference = references[value["question_id"]]["text"]
    return Question(
        id=str(value["question_id"]),
        split=value["category"],
        text=value["text"],
        answer=reference,
        images=(f"images/{value['image']}",),
        labels={"context": "\n".join(caption) if isinstance(caption, list) else caption},
    )


def _messages(question: Question, answer: str, again: bool) -> list[dict[str, str]]:
    del again
    parts = [
        f"[Context]\n{question.labels['context']}",
        f"[Question]\n{question.text}",
        f"[Assistant 1]\n{question.answer}\n\n[End of Assistant 1]",
        f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]",
        f"[System]\n{_RULE}\n\n",
    ]
    return [
        {"role": "system", "content": _ROLE},
        {"role": "user", "content": "\n\n".join(parts)},
    ]


def _parse(reply: str) -> str | None:
    """Return the two scores in the first line of a reply."""
    parts = reply.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, parts)
    except ValueError:
        return None
    return f"{first:g} {second:g}"


def _load_reviews(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]] | None:
    del questions
    values = read_json(path)
    values = values if isinstance(values, list) else [values]
    if not all(isinstance(value, dict) and "tuple" in value for value in values):
        return None
    return [
        build(
            f"{path}: review {number}",
            "question_id and a tuple of two scores",
            lambda value: (str(value["question_id"]), " ".join(f"{x:g}" for x in value["tuple"])),
            value,
        )
        for number, value in enumerate(values, start=1)
    ]


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the relative score, and both assistants' mean scores times ten, by category."""
    rows: dict[str, list[tuple[float, float]]] = {"all": []}
    units: dict[str, list[str]] = {"all": []}
    for question, grade in answered:
        want = "two scores"
        first, second = build(f"id {question.id}", want, lambda g: map(float, g.split()), grade)
        for name in ("all", question.split):
            rows.setdefault(name, []).append((first, second))
            units.setdefault(name, []).append(question.unit)
    return {name: _scores(some, units[name]) for name, some in rows.items()}


def _scores(rows: Sequence[tuple[float, float]], units: Sequence[str]) -> dict[str, Metric]:
    columns = [(first, second, 1.0) for first, second in rows]

    def means(sums: Array) -> tuple[float, float]:
        whole = max(sums[2], 1.0)
        return float(np.round(sums[0] / whole, 3)), float(np.round(sums[1] / whole, 3))

    formulas = {
        "relative": lambda sums: 100 * ratio(means(sums)[1], means(sums)[0]),
        "gpt4": lambda sums: 10 * means(sums)[0],
        "model": lambda sums: 10 * means(sums)[1],
    }
    return {name: sums_metric(columns, units, formula) for name, formula in formulas.items()}


LLAVA_BENCH = Benchmark(
    name="llava_bench",
    read=read,
    metrics=metrics,
    max_new_tokens=1024,
    load=load_list("question_id", "text"),
    save=save_json(
        "llava_bench.jsonl",
        lambda answered: [
            {
                "question_id": int(question.id) if question.id.isdecimal() else question.id,
                "prompt": question.text,
                "text": answer,
                "answer_id": question.id,
            }
            for question, answer in answered
        ],
        lines=True,
    ),
    rules=Rules(missing="not counted", repeated="each", unknown="error"),
    grading=Grading(
        messages=_messages,
        parse=_parse,
        load=_load_reviews,
        unreadable="-1 -1",
        temperatures=(0.2,),
        max_tokens=1024,
    ),
    layout=(
        *(
            Needed(paths=(name,), source=_SOURCE)
            for name in ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
        ),
        Needed(paths=("images",), source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="LLaVA-W", value=lambda scores: scores["all"]["relative"]),),
)
