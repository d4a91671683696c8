"""MM-Vet: questions that need several capabilities at once, graded (Yu et al. 2023).

https://github.com/yuweihao/MM-Vet/releases, mm-vet.zip (arXiv:2308.02490):

    DATA/mm-vet.json
    DATA/images/…

A judge that sees the true answer gives 0.0 to 1.0, with the few-shot prompt of the official
`mm-vet_evaluator.py`; a reply that does not begin with such a number is asked for again, at
temperatures 0, 0.5, 1 and 1.5, and then counts 0. Scores are means in percent, of all and by
capability, over all questions and all runs of the grader. Without a prediction for each question
the script fails, and ignores others. Published figures are of gpt-4-0613 as the judge. Predictions:
`{ID: text}`; grades: the script's `{ID: {"score": [one per run]}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.evaluate.benchmark import (
    Answered,
    Benchmark,
    Grading,
    Headline,
    Needed,
    Question,
    Rules,
)
from pipeline.evaluate.metrics import Metric, Metrics, mean_metric
from pipeline.evaluate.prediction_files import build, read_json, save_json

_SOURCE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
_INSTRUCTION = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the"
    " prediction. <AND> in the ground truth means it is totally right only when all elements in the"
    " ground truth are present in the prediction, and <OR> means it is totally right when any one"
    " element in the ground truth is present in the prediction. The correctness score is 0.0"
    " (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just"
    " complete the last space of the correctness score."
)
_EQUATION = "What is x in the equation? | -1 <AND> -5"
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the"
    " countries Iceland and Greenland are misleading. Despite its name, Iceland is known for its"
    " beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is"
    " saying that the person has trust issues because the names of these countries do not"
    " accurately represent their landscapes."
)
_PROMPT = "\n".join(
    [
        _INSTRUCTION,
        "",
        "Question | Ground truth | Prediction | Correctness",
        "--- | --- | --- | ---",
        f"{_EQUATION} | x = 3 | 0.0",
        f"{_EQUATION} | x = -1 | 0.5",
        f"{_EQUATION} | x = -5 | 0.5",
        f"{_EQUATION} | x = -5 or 5 | 0.5",
        f"{_EQUATION} | x = -1 or x = -5 | 1.0",
        f"{_MEME} | The meme talks about Iceland and Greenland. It's pointing out that despite"
        " their names, Iceland is not very icy and Greenland isn't very green. | 0.4",
        f"{_MEME} | The meme is using humor to point out the misleading nature of Iceland's and"
        " Greenland's names. Iceland, despite its name, has lush green landscapes while Greenland"
        " is mostly covered in ice and snow. The text 'This is why I have trust issues' is a"
        " playful way to suggest that these contradictions can lead to distrust or confusion. The"
        " humor in this meme is derived from the unexpected contrast between the names of the"
        " countries and their actual physical characteristics. | 1.0",
        "",
    ]
)
"""MM-Vet's few-shot prompt (Yu et al. 2023, table 1)."""
_AGAIN = "\nPredict the correctness of the answer (digit): "


def read(folder: Path) -> list[Question]:
    """Read the questions, with their capabilities as labels."""
    path = folder / "mm-vet.json"
    values = build(str(path), "an object of questions", lambda: dict(read_json(path)))
    want = "imagename, question, answer and capability"
    return [
        build(f"{path}: {name}", want, partial(_question, name, value))
        for name, value in values.items()
    ]


def _question(name: str, value: Mapping[str, Any]) -> Question:
    return Question(
        id=name,
        split="mm-vet",
        text=value["question"],
        answer=value["answer"],
        images=(f"images/{value['imagename']}",),
        labels={"capabilities": "\n".join(sorted(set(value["capability"])))},
    )


def _messages(question: Question, answer: str, again: bool) -> list[dict[str, str]]:
    truth = question.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    text = _PROMPT + "\n" + " | ".join([question.text, truth, answer, ""])
    return [{"role": "user", "content": text + (_AGAIN if again else "")}]


def _parse(reply: str) -> str | None:
    """Return the number that a reply begins with, if it is one from 0 to 1."""
    try:
        score = float(reply.split(" ", maxsplit=1)[0].strip())
    except ValueError:
        return None
    return f"{score:g}" if 0 <= score <= 1 else None


def _load_grades(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]] | None:
    del questions
    values = read_json(path)
    if not isinstance(values, dict) or any(isinstance(value, str) for value in values.values()):
        return None
    return [
        build(
            f"{path}: {name}",
            "an object with score, a list of numbers",
            lambda name, value: (name, " ".join(f"{float(score)!r}" for score in value["score"])),
            name,
            value,
        )
        for name, value in values.items()
    ]


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the mean score in percent: of all, by capability and by set of capabilities."""
    rows: dict[str, list[tuple[float, str]]] = {"total": []}
    for question, grade in answered:
        scores = build(
            f"id {question.id}", "scores", lambda text: [float(x) for x in text.split()], grade
        )
        row = (sum(scores) / max(len(scores), 1), question.unit)
        capabilities = question.labels["capabilities"].split("\n")
        for name in ("total", *capabilities, f"integration/{'_'.join(capabilities)}"):
            rows.setdefault(name, []).append(row)
    found: dict[str, dict[str, Metric]] = {}
    for name, some in rows.items():
        points, units = [points for points, _ in some], [unit for _, unit in some]
        found[name] = {"score": mean_metric(points, units, scale=100)}
    return found


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    del questions
    values = build(str(path), "an object: question → prediction", lambda: dict(read_json(path)))
    return [(name, str(answer)) for name, answer in values.items()]


MMVET = Benchmark(
    name="mmvet",
    read=read,
    metrics=metrics,
    max_new_tokens=1024,
    load=_load,
    save=save_json(
        "mmvet.json", lambda answered: {question.id: answer for question, answer in answered}
    ),
    rules=Rules(missing="error", repeated="last", unknown="ignored"),
    grading=Grading(
        messages=_messages,
        parse=_parse,
        load=_load_grades,
        unreadable="0",
        temperatures=(0.0, 0.0, 0.5, 1.0, 1.5),
        max_tokens=3,
    ),
    layout=(
        Needed(paths=("mm-vet.json",), source=_SOURCE),
        Needed(paths=("images",), source=_SOURCE, images=True),
    ),
    headlines=(Headline(column="MM-Vet", value=lambda scores: scores["total"]["score"]),),
)
