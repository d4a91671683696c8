"""Answers that are kept: whole batches, of the same weights and questions, and nothing torn."""

import json
import logging
from pathlib import Path

import pytest

from pipeline.evaluate.answered import Answered
from pipeline.evaluate.answers import Prediction

IDENTITY = {"weights": "abc", "batch": 2}


def prediction(number: int) -> Prediction:
    truth, answer = str(number), str(number % 3)
    return Prediction(id=f"s{number}", kind="sum", question="?", truth=truth, answer=answer)


def test_whole_batches_are_kept_and_a_torn_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.jsonl"
    answered = Answered(path, IDENTITY, 2)
    answered.add([prediction(0), prediction(1)])
    answered.add([prediction(2), prediction(3)])
    partial = path.with_name("predictions.jsonl.partial")
    text = partial.read_text()
    partial.write_text(text[:-9])  # killed in the midst of the fourth line
    again = Answered(path, IDENTITY, 2)
    assert again.predictions == [prediction(0), prediction(1)]
    assert not path.exists()
    again.add([prediction(2), prediction(3)])
    assert partial.read_text() == text
    again.finish()
    again.forget()
    assert [json.loads(line)["right"] for line in path.read_text().splitlines()] == [
        *(True, True, True, False)
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("torn", [False, True])
def test_answers_of_other_weights_or_with_a_torn_head_do_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, torn: bool
) -> None:
    path = tmp_path / "predictions.jsonl"
    Answered(path, IDENTITY, 1).add([prediction(0)])
    if torn:
        path.with_name("predictions.jsonl.partial").write_text('{"identity"')
    with caplog.at_level(logging.WARNING):
        other = Answered(path, IDENTITY | {} if torn else IDENTITY | {"weights": "abd"}, 1)
    assert other.predictions == []
    assert "of other weights, questions or options; starts anew" in caplog.text
