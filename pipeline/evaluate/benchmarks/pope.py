"""POPE: whether a model sees objects that are not in the image (Li et al. 2023, arXiv:2305.10355).

    DATA/coco_pope_{random,popular,adversarial}.json    the published questions, JSON lines
    DATA/val2014/COCO_val2014_….jpg                     COCO's images

The questions about absent objects differ by how these are sampled; each sampling is a split.
Scored by the official `evaluate.py` (RUCAIBox/POPE), which pairs the n-th answer with the n-th
question, so that questions after the last answer are not counted. Predictions: per sampling a file
of lines `{"question", "answer"}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from etl.cli import UserError
from pipeline.evaluate.benchmark import Answered, Benchmark, Headline, Needed, Question, Rules
from pipeline.evaluate.metrics import Array, Metric, Metrics, Scores, ratio, sums_metric
from pipeline.evaluate.prediction_files import build, read_json_lines, read_text
from pipeline.evaluate.prompts import short_answer

SAMPLINGS = ("random", "popular", "adversarial")


def read(folder: Path) -> list[Question]:
    """Read the questions of all samplings in a folder; their ids are SAMPLING/question_id."""
    files = {name: folder / f"coco_pope_{name}.json" for name in SAMPLINGS}
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise UserError(f"{folder}: has none of {', '.join(path.name for path in files.values())}")
    questions: list[Question] = []
    for sampling, path in found.items():
        lines = read_text(path, "questions").splitlines()
        if not lines:
            raise UserError(f"{path}: no questions; want lines of JSON")
        questions += [
            _question(sampling, line, f"{path}:{number}")
            for number, line in enumerate(lines, start=1)
        ]
    return questions


def _question(sampling: str, line: str, where: str) -> Question:
    try:
        value = json.loads(line)
        return Question(
            id=f"{sampling}/{value['question_id']}",
            split=sampling,
            text=value["text"],
            answer=value["label"],
            images=(f"val2014/{value['image']}",),
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: want question_id, image, text and label") from None


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return accuracy, precision, recall, F1 and ratio of yes per sampling, "yes" being positive.

    As in the official `evaluate.py`, except that a ratio of zero answers is 0 instead of an error.
    """
    samplings = dict.fromkeys(question.split for question, _ in answered)
    return {
        sampling: yes_no_metrics(
            [(says_yes(answer), q.answer != "no") for q, answer in answered if q.split == sampling],
            [question.unit for question, _ in answered if question.split == sampling],
        )
        for sampling in samplings
    }


def says_yes(answer: str) -> bool:
    """Whether an answer is taken as yes: no "No", "no" or "not" among its first sentence's words.

    The first sentence ends at the first full stop, words at spaces; commas are ignored. So "NO" and
    "Nope" count as yes, as in the official script.
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def yes_no_metrics(pairs: Sequence[tuple[bool, bool]], units: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics of (predicted, true) pairs."""
    rows = [
        (predicted == true, predicted and true, predicted, true, 1) for predicted, true in pairs
    ]

    def f1(sums: Array) -> float:
        precision, recall = ratio(sums[1], sums[2]), ratio(sums[1], sums[3])
        return ratio(2 * precision * recall, precision + recall)

    formulas = {
        "accuracy": lambda sums: ratio(sums[0], sums[4]),
        "precision": lambda sums: ratio(sums[1], sums[2]),
        "recall": lambda sums: ratio(sums[1], sums[3]),
        "f1": f1,
        "yes_ratio": lambda sums: ratio(sums[2], sums[4]),
    }
    return {name: sums_metric(rows, units, formula) for name, formula in formulas.items()}


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Read a file of answers, named after its sampling, or a folder of them."""
    by_sampling: dict[str, list[str]] = {}
    for question in questions:
        by_sampling.setdefault(question.split, []).append(question.id)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = {
        sampling: [file for file in files if sampling in file.name] for sampling in by_sampling
    }
    if not path.is_dir() and len(by_sampling) == 1:
        named = dict.fromkeys(by_sampling, files)
    found: list[tuple[str, str]] = []
    for sampling, some in named.items():
        if len(some) > 1:
            raise UserError(f"{path}: {len(some)} files of {sampling} answers, want one")
        for file in some:
            found += _answers_of(file, by_sampling[sampling])
    if not found:
        raise UserError(f"{path}: want a file named after its sampling: {', '.join(by_sampling)}")
    return found


def _answers_of(path: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the answers in a file: the n-th line is of the n-th question of its sampling."""
    answers = [
        build(where, "an object with answer", lambda value: str(value["answer"]), value)
        for where, value in read_json_lines(path)
    ]
    if len(answers) > len(names):
        raise UserError(f"{path}: {len(answers)} answers to {len(names)} questions")
    return list(zip(names, answers, strict=False))


def _save(answered: Sequence[Answered]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for question, answer in answered:
        name = f"coco_pope_{question.split}_answers.json"
        line = json.dumps({"question": question.text, "answer": answer}).encode() + b"\n"
        files[name] = files.get(name, b"") + line
    return files


def _mean_f1(scores: Scores) -> float:
    """Return the mean F1 of the samplings in percent, as LLaVA-1.5 reports it."""
    return 100 * sum(metrics["f1"] for metrics in scores.values()) / len(scores)


POPE = Benchmark(
    name="pope",
    read=read,
    metrics=metrics,
    prompt=short_answer,
    load=_load,
    save=_save,
    rules=Rules(missing="not counted", repeated="error", unknown="error"),
    layout=(
        Needed(
            paths=tuple(f"coco_pope_{name}.json" for name in SAMPLINGS),
            source="https://github.com/RUCAIBox/POPE/tree/main/output/coco",
        ),
        Needed(paths=("val2014",), source="https://cocodataset.org/#download", images=True),
    ),
    headlines=(Headline(column="POPE", value=_mean_f1),),
)
