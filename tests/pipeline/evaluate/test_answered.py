"""Answers that are kept: whole batches, of the same weights and questions, and nothing torn."""

import json
import logging
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.evaluate.answered import Answered
from pipeline.evaluate.answers import Prediction
from tests.disks import make_room, small_disk

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


def test_what_a_dead_node_has_left_of_a_batch_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    Answered(path, IDENTITY, 2).add([prediction(0), prediction(1)])
    partial = path.with_name("predictions.jsonl.partial")
    whole = partial.read_bytes()
    with partial.open("ab") as stream:
        stream.write(bytes(60) + b"\n" + whole.splitlines(keepends=True)[1] * 3)
    assert Answered(path, IDENTITY, 2).predictions == [prediction(0), prediction(1)]
    assert partial.read_bytes() == whole


def test_a_full_disk_is_told_in_one_line_and_keeps_whole_batches(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 << 10) as disk:
        path = disk / "predictions.jsonl"
        answered = Answered(path, IDENTITY, 1)
        answered.add([prediction(0)])
        (disk / "other").write_bytes(bytes(16 << 10))
        long = Prediction(id="s1", kind="sum", question="?" * 20_000, truth="1", answer="1")
        with pytest.raises(UserError, match=r"jsonl: cannot be written \(No space left"):
            answered.add([long])
        make_room(disk, 1 << 20)
        again = Answered(path, IDENTITY, 1)
        assert again.predictions == [prediction(0)]
        again.add([long])
        again.finish()
        assert len(path.read_text().splitlines()) == 2
