"""Answers graded by a language model: such as one at an OpenAI-compatible address."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import urllib3

from etl.cli import UserError
from pipeline.evaluate.benchmark import Answered, Benchmark, Grading, Question
from pipeline.evaluate.prediction_files import build, match, read_json_lines

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
"""Each with a `role` and its `content`: a text, or a list of texts and images."""
Judge = Callable[[Messages, int, float], str]
"""Returns the reply to chat messages: (messages, max_tokens, temperature)."""

KEY = "OPENAI_API_KEY"
"""Of the environment: sent to the address as a bearer token, if there is one."""
_RETRIES = urllib3.Retry(
    total=8,
    backoff_factor=1.0,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
    redirect=0,
)


def address_judge(address: str, model: str, *, connections: int = 1) -> Judge:
    """Return a judge behind an OpenAI-compatible address, such as http://127.0.0.1:8000/v1.

    Args:
        address: to which `/chat/completions` is added.
        model: its name there.
        connections: threads that ask it at the same time.

    Raises:
        UserError: from the judge: no answer, or one of another form.
    """
    url = f"{address.rstrip('/')}/chat/completions"
    pool = urllib3.PoolManager(
        maxsize=connections, retries=_RETRIES, timeout=urllib3.Timeout(connect=10, read=600)
    )
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"

    def ask(messages: Messages, max_tokens: int, temperature: float) -> str:
        request = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        try:
            body = json.dumps(request).encode()
            response = pool.request("POST", url, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise UserError(f"{url}: no answer ({error})") from None
        if response.status != 200:
            said = response.data[:200].decode(errors="replace")
            raise UserError(f"{url}: status {response.status}, want 200: {said}")
        want = "a chat completion, with choices[0].message.content"
        return build(
            url, want, lambda: str(json.loads(response.data)["choices"][0]["message"]["content"])
        )

    return ask


def read_grades(
    benchmark: Benchmark, path: Path, questions: Sequence[Question]
) -> list[Answered] | None:
    """Return recorded grades of a file, ours or official; None if it holds something else.

    Raises:
        UserError: what the benchmark's rules call an error.
    """
    assert benchmark.grading is not None
    recorded = _recorded(path)
    pairs = [(name, grade) for name, grade, _ in recorded] if recorded else None
    if pairs is None and path.is_file():
        pairs = benchmark.grading.load(path, questions)
    if pairs is None:
        return None
    return match(
        path, [(str(path), name, grade) for name, grade in pairs], questions, benchmark.rules
    )


def _recorded(path: Path) -> list[tuple[str, str, str]]:
    """Return (id, grade, answer) of each line of our own file of grades; none of other files."""
    if path.suffix != ".jsonl" or not path.is_file():
        return []
    lines = [value for _, value in read_json_lines(path)]
    if not all(
        isinstance(line, dict) and {"id", "grade", "answer"} <= line.keys() for line in lines
    ):
        return []
    return [(str(line["id"]), str(line["grade"]), str(line["answer"])) for line in lines]


def grade(
    benchmark: Benchmark, answered: Sequence[Answered], judge: Judge, path: Path
) -> list[Answered]:
    """Return each question with the grade of its answer, asking for those not yet recorded.

    Args:
        benchmark: says how.
        answered: to be graded.
        judge: asked one question after another.
        path: JSON lines with `id`, `answer`, `grade` and the judge's `replies`. Each grade is
            appended as soon as it is there; grades of the same answers are not asked for again.

    Raises:
        UserError: the file cannot be written, or the judge does not answer.
    """
    assert benchmark.grading is not None
    known = {(name, answer): one for name, one, answer in _recorded(path)}
    graded = []
    try:
        with path.open("a") as stream:
            for question, answer in answered:
                if (question.id, answer) not in known:
                    one, replies = _ask(benchmark.grading, question, answer, judge)
                    line = {"id": question.id, "answer": answer, "grade": one, "replies": replies}
                    stream.write(json.dumps(line) + "\n")
                    stream.flush()
                    known[question.id, answer] = one
                graded.append((question, known[question.id, answer]))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return graded


def _ask(grading: Grading, question: Question, answer: str, judge: Judge) -> tuple[str, list[str]]:
    replies: list[str] = []
    for temperature in grading.temperatures:
        messages = grading.messages(question, answer, bool(replies))
        replies.append(judge(messages, grading.max_tokens, temperature))
        found = grading.parse(replies[-1])
        if found is not None:
            return found, replies
    log.warning(
        "%s: no grade in %d replies of the judge; it counts as %s",
        question.id,
        len(replies),
        grading.unreadable,
    )
    return grading.unreadable, replies
