"""IconQA, IconVQA in the survey: abstract diagrams (Lu et al. 2021, arXiv:2110.13214).

https://iconqa.github.io/, the unpacked iconqa_data:

    DATA/problems.json, DATA/pid_splits.json    the test splits of the three sub-tasks are read
    DATA/pid2skills.json                        optional: scores by skill
    DATA/iconqa/test/SUBTASK/ID/{image,choice_0,choice_1,…}.png

Scored by the official `tools/sub_acc.py` over the predictions: a question without one is not
counted, of two the last one counts. Predictions: `{"results": {ID: index of the choice, or text}}`,
or a folder with such a file per sub-task. Choices are ranked by their likelihood after MiniGPT-v2's
question (Vision-CAIR/MiniGPT-4, `IconQAEvalData`), or with `--choose generation` asked for by
letter, as for LLaVA-1.5's benchmarks. The survey's figures are of choose_txt.
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
from pipeline.evaluate.multiple_choice import lettered_options, mmbench_letter
from pipeline.evaluate.prediction_files import build, read_json, save_json
from pipeline.evaluate.prompts import lettered, short_answer

_SOURCE = "https://iconqa.github.io/"
_BLANK = "fill_in_blank"
_TASKS = ("choose_img", "choose_txt", _BLANK)
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def read(folder: Path) -> list[Question]:
    """Read the test questions of all sub-tasks."""
    path, splits = folder / "problems.json", folder / "pid_splits.json"
    problems = build(str(path), "an object of problems", lambda: dict(read_json(path)))
    pids = build(str(splits), "an object of splits", lambda: dict(read_json(splits)))
    skills: dict[str, list[str]] = {}
    if (folder / "pid2skills.json").is_file():
        skills = read_json(folder / "pid2skills.json")
    names = [(task, str(name)) for task in _TASKS for name in pids.get(f"{task}_test", ())]
    if not names:
        raise UserError(f"{splits}: has none of {', '.join(f'{task}_test' for task in _TASKS)}")
    want = "question, ques_type, answer, and choices to choose from"
    return [
        build(f"{path}: {name}", want, partial(_question, task, name, problems[name], skills))
        for task, name in names
        if name in problems or _missing(path, name)
    ]


def _missing(path: Path, name: str) -> bool:
    raise UserError(f"{path}: has no problem {name!r} of pid_splits.json")


def _question(
    task: str, name: str, value: Mapping[str, Any], skills: Mapping[str, Sequence[str]]
) -> Question:
    place = f"iconqa/test/{task}/{name}"
    images, options = [f"{place}/image.png"], tuple(map(str, value.get("choices", ())))
    if task == "choose_img":
        images += [f"{place}/{choice}" for choice in options]
        options = tuple(f"The {_ORDINALS[i]} image." for i in range(len(options)))
    return Question(
        id=name,
        split=task,
        text=value["question"],
        answer=str(value["answer"]),
        images=tuple(images),
        options=() if task == _BLANK else options,
        labels={"skills": "\n".join(skills.get(name, ()))},
    )


def _prompt(question: Question) -> str:
    return lettered(question) if question.options else short_answer(question)


def _ranked(question: Question) -> str:
    return f"Based on the image, respond to this question with a short answer: {question.text}"


def _prediction(question: Question, reply: str) -> str:
    """Return the index of the choice that a reply gives, by letter or text; else the reply."""
    if not question.options:
        return reply
    letter = mmbench_letter(reply, lettered_options(question.options))
    index = LETTERS.find(letter) if letter else -1
    return str(index) if 0 <= index < len(question.options) else reply


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the accuracy of all questions, of each sub-task, and by skill."""
    rows: dict[str, list[tuple[float, str]]] = {"all": []}
    for question, answer in answered:
        row = (float(answer == question.answer), question.unit)
        skills = [f"skill/{name}" for name in question.labels["skills"].split("\n") if name]
        for name in ("all", question.split, *skills):
            rows.setdefault(name, []).append(row)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    del questions
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return [
        (str(name), str(answer))
        for file in files
        for name, answer in build(
            str(file), "an object with results", lambda file: dict(read_json(file)["results"]), file
        ).items()
    ]


def _results(answered: Sequence[Answered]) -> object:
    return {
        "results": {
            question.id: int(answer) if question.options and answer.isdecimal() else answer
            for question, answer in answered
        }
    }


ICONQA = Benchmark(
    name="iconqa",
    read=read,
    metrics=metrics,
    prompt=_prompt,
    ranked=_ranked,
    ask="likelihood",
    prediction=_prediction,
    load=_load,
    save=save_json("iconqa.json", _results),
    rules=Rules(missing="not counted", repeated="last", unknown="error"),
    layout=(
        Needed(paths=("problems.json",), source=_SOURCE),
        Needed(paths=("pid_splits.json",), source=_SOURCE),
        Needed(paths=("iconqa/test",), source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="IconVQA", value=percent("choose_txt", "accuracy")),),
)
