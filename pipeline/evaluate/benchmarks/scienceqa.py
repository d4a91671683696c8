"""ScienceQA, and SQA-I, its questions with an image (Lu et al. 2022, arXiv:2209.09513).

https://github.com/lupantech/ScienceQA, data/scienceqa:

    DATA/problems.json, DATA/pid_splits.json    the test split is read
    DATA/images/test/ID/image.png

Scored as LLaVA's `eval_science_qa.py`: a question without a prediction is wrong, but not counted
among those with an image; of two predictions the last one counts, others are ignored. Predictions:
LLaVA's lines with `question_id` and `text`, or ScienceQA's own `{"results": {ID: index}}`, which
its `evaluate_acc.py` scores by the same rule and by subject, context and grade.
"""

from __future__ import annotations

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
from pipeline.evaluate.multiple_choice import scienceqa_letter
from pipeline.evaluate.prediction_files import build, load_list, read_json, save_json
from pipeline.evaluate.prompts import lettered

_SOURCE = "https://github.com/lupantech/ScienceQA, data/scienceqa"
_MISSING = "FAILED"
_FIRST_GRADES = frozenset(f"grade{number}" for number in range(1, 7))


def read(folder: Path) -> list[Question]:
    """Read the questions of the test split."""
    path, splits = folder / "problems.json", folder / "pid_splits.json"
    problems = build(str(path), "an object of problems", lambda: dict(read_json(path)))
    names = build(str(splits), "an object with test", lambda: list(read_json(splits)["test"]))
    want = "question, choices, answer, hint, image, subject and grade"
    return [
        build(f"{path}: {name}", want, partial(_question, problems, name))
        for name in map(str, names)
    ]


def _question(problems: Mapping[str, Any], name: str) -> Question:
    value = problems[name]
    hint, image, grade = value["hint"], value["image"], value["grade"]
    facets = [
        f"subject/{value['subject']}",
        *(["text context"] if hint else []),
        *(["image context"] if image else []),
        *([] if hint or image else ["no context"]),
        "grades 1-6" if grade in _FIRST_GRADES else "grades 7-12",
    ]
    return Question(
        id=name,
        split="test",
        text=(f"Context: {hint}\n" if hint else "") + value["question"],
        answer=LETTERS[value["answer"]],
        images=(f"images/test/{name}/{image}",) if image else (),
        options=tuple(map(str, value["choices"])),
        labels={"facets": "\n".join(facets)},
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the accuracy of all, of those with an image and a prediction, and by facet."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        row = (float(scienceqa_letter(answer) == question.answer), question.unit)
        names = ["all", *question.labels["facets"].split("\n")]
        if question.images and answer != _MISSING:
            names.append("image")
        for name in names:
            rows.setdefault(name, []).append(row)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    values = read_json(path)
    if not isinstance(values, dict) or "results" not in values:
        return load_list("question_id", "text")(path, questions)
    results = values["results"]
    if not isinstance(results, dict):
        raise UserError(f"{path}: want results as an object: question → index of the choice")
    return [
        build(
            f"{path}: {name}",
            "an index of the choices",
            lambda name, index: (str(name), LETTERS[int(index)] if int(index) >= 0 else ""),
            name,
            index,
        )
        for name, index in results.items()
    ]


SCIENCEQA = Benchmark(
    name="scienceqa",
    read=read,
    metrics=metrics,
    prompt=lettered,
    load=_load,
    save=save_json(
        "scienceqa.jsonl",
        lambda answered: [
            {"question_id": question.id, "prompt": lettered(question), "text": answer}
            for question, answer in answered
        ],
        lines=True,
    ),
    rules=Rules(missing="wrong", repeated="last", unknown="ignored", blank=_MISSING),
    layout=(
        Needed(paths=("problems.json",), source=_SOURCE),
        Needed(paths=("pid_splits.json",), source=_SOURCE),
        Needed(paths=("images/test",), source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="SQA-I", value=percent("image", "accuracy")),),
)
