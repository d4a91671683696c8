"""Partial predictions: complete batches of the same evaluation, and no incomplete lines."""

import json
import logging
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.evaluate.generate_answers import Prediction
from pipeline.evaluate.partial_predictions import PartialPredictions
from tests.disks import make_room, small_disk

IDENTITY = {"weights": "abc", "batch": 2}


def prediction(number: int) -> Prediction:
    truth, answer = str(number), str(number % 3)
    return Prediction(id=f"s{number}", kind="sum", question="?", truth=truth, answer=answer)


def test_complete_batches_are_saved_and_an_incomplete_line_is_discarded(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.jsonl"
    partial = PartialPredictions(path, IDENTITY, 2)
    partial.add(0, [prediction(0), prediction(1)])
    partial.add(2, [prediction(2), prediction(3)])
    file = path.with_name("predictions.jsonl.partial")
    text = file.read_text()
    file.write_text(text[:-9])  # killed while writing the fourth line
    again = PartialPredictions(path, IDENTITY, 2)
    assert again.predictions == [prediction(0), prediction(1)]
    assert not path.exists()
    again.add(2, [prediction(2), prediction(3)])
    assert file.read_text() == text
    again.finish()
    again.remove_partial()
    assert [json.loads(line)["correct"] for line in path.read_text().splitlines()] == [
        *(True, True, True, False)
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damaged", [False, True])
def test_predictions_of_other_weights_or_with_a_damaged_head_are_discarded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, damaged: bool
) -> None:
    path = tmp_path / "predictions.jsonl"
    PartialPredictions(path, IDENTITY, 1).add(0, [prediction(0)])
    if damaged:
        path.with_name("predictions.jsonl.partial").write_text('{"identity"')
    with caplog.at_level(logging.WARNING):
        other = PartialPredictions(
            path, IDENTITY | {} if damaged else IDENTITY | {"weights": "abd"}, 1
        )
    assert other.predictions == []
    assert "of other weights, questions or options; starting over" in caplog.text


def test_a_batch_damaged_by_a_node_failure_is_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    PartialPredictions(path, IDENTITY, 2).add(0, [prediction(0), prediction(1)])
    file = path.with_name("predictions.jsonl.partial")
    before = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(bytes(60) + b"\n" + before.splitlines(keepends=True)[1] * 3)
    assert PartialPredictions(path, IDENTITY, 2).predictions == [prediction(0), prediction(1)]
    assert file.read_bytes() == before


def test_a_full_disk_is_reported_in_one_line_and_complete_batches_stay(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 << 10) as disk:
        path = disk / "predictions.jsonl"
        partial = PartialPredictions(path, IDENTITY, 1)
        partial.add(0, [prediction(0)])
        (disk / "other").write_bytes(bytes(16 << 10))
        long = Prediction(id="s1", kind="sum", question="?" * 20_000, truth="1", answer="1")
        with pytest.raises(UserError, match=r"jsonl: cannot be written \(No space left"):
            partial.add(1, [long])
        make_room(disk, 1 << 20)
        again = PartialPredictions(path, IDENTITY, 1)
        assert again.predictions == [prediction(0)]
        again.add(1, [long])
        again.finish()
        assert len(path.read_text().splitlines()) == 2


def test_ranks_answer_other_batches_and_any_number_of_ranks_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks, one after the other; two of them write before all are killed."""
    path = tmp_path / "predictions.jsonl"

    def partial(rank: int, ranks: int) -> PartialPredictions:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        return PartialPredictions(path, IDENTITY, 2, 9)

    three = [partial(rank, 3) for rank in range(3)]
    assert [one.remaining(9) for one in three] == [[0, 6], [2, 8], [4]]
    three[1].add(2, [prediction(2), prediction(3)])
    three[1].add(8, [prediction(8)])
    three[2].add(4, [prediction(4), prediction(5)])
    three[0].add(0, [prediction(0)])  # incomplete
    two = [partial(rank, 2) for rank in range(2)]
    assert [one.remaining(9) for one in two] == [[0], [6]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions.jsonl.partial"]
    two[1].add(6, [prediction(6), prediction(7)])
    two[0].add(0, [prediction(0), prediction(1)])
    two[0].finish()
    assert two[0].predictions == [prediction(number) for number in range(9)]
    two[0].remove_partial()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        f"s{number}" for number in range(9)
    ]
    assert list(tmp_path.iterdir()) == [path]
