"""Files of predictions: ours, JSON lines with `id` and `answer`, and the official ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from etl.cli import UserError
from pipeline.evaluate.benchmark import STRICT, Answered, Benchmark, Question, Rules

log = logging.getLogger(__name__)

Result = TypeVar("Result")

EVALUATED = "predictions.jsonl"
"""In the folder of an evaluation."""


def read_text(path: Path, want: str) -> str:
    """Return the text of a file.

    Raises:
        UserError: no such file, or one that is not text; `want` says what it should hold.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; want {want}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; want {want}") from None


def read_list(path: Path) -> list[Any]:
    """Return the list in a JSON file, or its JSON lines.

    Raises:
        UserError: no such file, or one that is neither.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise UserError(f"{path}: want a list")
    return values


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the JSON document in a file, or the list of its JSON lines.

    Raises:
        UserError: no such file, or one that is neither.
    """
    text = read_text(path, "JSON, or JSON lines")
    try:
        return json.loads(text)
    except ValueError:
        return [value for _, value in _lines(path, text)]


def read_json_lines(path: Path) -> list[tuple[str, Any]]:
    """Return the JSON lines of a file, each with its place, `PATH:NUMBER`; blank lines are skipped.

    Raises:
        UserError: no such file, or a line that is not JSON.
    """
    return _lines(path, read_text(path, "JSON lines"))


def _lines(path: Path, text: str) -> list[tuple[str, Any]]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append((f"{path}:{number}", json.loads(line)))
            except ValueError:
                raise UserError(f"{path}:{number}: not JSON; want an object per line") from None
    return found


def build(where: str, want: str, make: Callable[..., Result], *args: Any) -> Result:  # noqa: ANN401
    """Return `make(*args)`, which builds something of a record.

    Raises:
        UserError: the record lacks a field or has one of another type: "WHERE: want WANT".
    """
    try:
        return make(*args)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"{where}: want {want}") from None


def load_list(key: str, answer: str) -> Callable[[Path, Sequence[Question]], list[tuple[str, str]]]:
    """Return a loader of a list, or of lines, of objects with these two keys."""

    def load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
        del questions
        values = read_json(path)
        values = values if isinstance(values, list) else [values]
        return [
            build(
                f"{path}: prediction {number}",
                f"an object with {key} and {answer}",
                lambda value: (str(value[key]), str(value[answer])),
                value,
            )
            for number, value in enumerate(values, start=1)
        ]

    return load


def save_json(
    name: str, value: Callable[[Sequence[Answered]], object], *, lines: bool = False
) -> Callable[[Sequence[Answered]], dict[str, bytes]]:
    """Return a writer of one JSON file, or of JSON lines where the value is a list of them."""

    def save(answered: Sequence[Answered]) -> dict[str, bytes]:
        content = value(answered)
        if lines:
            assert isinstance(content, list)
            return {name: "".join(json.dumps(one) + "\n" for one in content).encode()}
        return {name: json.dumps(content).encode() + b"\n"}

    return save


def read_answers(
    path: Path, questions: Iterable[Question], rules: Rules = STRICT
) -> list[Answered]:
    """Read the answers to questions from our own file of predictions.

    Args:
        path: JSON lines, each an object with at least `id` and `answer`.
        questions: of the benchmark.
        rules: for what is not one answer to each question.

    Raises:
        UserError: no such file, an invalid line, or what the rules call an error.
    """
    pairs = []
    lines = read_text(path, "predictions as JSON lines").splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
            pairs.append((where, str(value["id"]), str(value["answer"])))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: want a JSON object with id and answer") from None
    return match(path, pairs, questions, rules)


def read_predictions(
    benchmark: Benchmark, path: Path, questions: Sequence[Question]
) -> list[Answered]:
    """Read predictions in our format or the benchmark's official one.

    Args:
        benchmark: says which answers are official, and what is done with missing ones.
        path: a file, a folder of official files, or the folder of an evaluation of ours.
        questions: of the benchmark.

    Raises:
        UserError: neither format, or what the benchmark's rules call an error.
    """
    if (path / EVALUATED).is_file():
        path /= EVALUATED
    if benchmark.load is None or _is_ours(path):
        replies = read_answers(path, questions, benchmark.rules)
        return [(question, benchmark.prediction(question, reply)) for question, reply in replies]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of predictions")
    pairs = [(str(path), name, answer) for name, answer in benchmark.load(path, questions)]
    return match(path, pairs, questions, benchmark.rules)


def _is_ours(path: Path) -> bool:
    """Whether the first line of a file is an object with `id` and `answer`."""
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8-sig") as stream:
            value = json.loads(stream.readline())
    except ValueError:
        return False
    return isinstance(value, dict) and {"id", "answer"} <= value.keys()


def match(
    path: Path, pairs: Iterable[tuple[str, str, str]], questions: Iterable[Question], rules: Rules
) -> list[Answered]:
    """Return the answered questions, and say in one line what was not as it should be."""
    by_id = {question.id: question for question in questions}
    found: dict[str, list[str]] = {}
    unknown = repeated = 0
    for where, name, answer in pairs:
        if name not in by_id:
            unknown += 1
            if rules.unknown == "error":
                raise UserError(f"{where}: id {name!r} is not a question of the benchmark")
        elif name in found:
            repeated += 1
            if rules.repeated == "error":
                raise UserError(f"{where}: id {name!r} is answered twice")
            found[name] = [*found[name], answer] if rules.repeated == "each" else [answer]
        else:
            found[name] = [answer]
    missing = [name for name in by_id if name not in found]
    if missing and rules.missing == "error":
        raise UserError(f"{path}: no answer to {min(missing)!r} ({len(missing)} missing)")
    if not found:
        raise UserError(f"{path}: no prediction of any of the benchmark's questions")
    if missing and rules.missing == "wrong":
        found.update((name, [rules.blank]) for name in missing)
    report = [
        f"{len(missing)} questions without a prediction: {rules.missing}" if missing else "",
        f"{repeated} repeated predictions: {_REPEATED[rules.repeated]}" if repeated else "",
        f"{unknown} predictions of other questions: {rules.unknown}" if unknown else "",
    ]
    if any(report):
        said = "; ".join(part for part in report if part)
        log.warning("%s: %s, as in the official script", path, said)
    return [(by_id[name], answer) for name in by_id for answer in found.get(name, ())]


_REPEATED = {"last": "the last one counts", "each": "each counts", "error": ""}
