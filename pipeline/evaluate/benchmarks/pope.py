"""POPE: whether a model sees objects that are not in the image (Li et al. 2023, arXiv:2305.10355).

    DATA/coco_pope_{random,popular,adversarial}.json    the published questions, JSON lines
    DATA/val2014/COCO_val2014_….jpg                     COCO's images

The questions about absent objects differ by how these are sampled; each sampling is a split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from etl.cli import UserError
from pipeline.evaluate.benchmark import Benchmark, Question, Scores

SAMPLINGS = ("random", "popular", "adversarial")


def read(folder: Path) -> list[Question]:
    """Read the questions of all samplings in a folder; their ids are SAMPLING/question_id."""
    files = {name: folder / f"coco_pope_{name}.json" for name in SAMPLINGS}
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise UserError(f"{folder}: has none of {', '.join(path.name for path in files.values())}")
    return [
        _question(sampling, line, f"{path}:{number}")
        for sampling, path in found.items()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
    ]


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


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Scores:
    """Return accuracy, precision, recall, F1 and ratio of yes per sampling, "yes" being positive.

    As in the official `evaluate.py`, except that a ratio of zero answers is 0 instead of an error.
    """
    samplings = dict.fromkeys(question.split for question in questions)
    return {
        sampling: _metrics(
            [(says_yes(answers[q.id]), q.answer != "no") for q in questions if q.split == sampling]
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


def _metrics(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Return the metrics of (predicted, true) pairs."""
    true_positives = sum(predicted and true for predicted, true in pairs)
    predicted_positives = sum(predicted for predicted, _ in pairs)
    positives = sum(true for _, true in pairs)
    precision = _ratio(true_positives, predicted_positives)
    recall = _ratio(true_positives, positives)
    return {
        "accuracy": _ratio(sum(predicted == true for predicted, true in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(predicted_positives, len(pairs)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


POPE = Benchmark(name="pope", read=read, score=score)
