"""Evaluation sets from shards, lists and folders."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.sources.evaluation_sets import EvaluationSets
from tests.worlds import caption_shards


def test_shards_are_images_and_texts(tmp_path: Path) -> None:
    folder = caption_shards(tmp_path / "eval", 3)
    items = list(EvaluationSets([folder]))
    assert len(items) == 3
    assert items[0].name.startswith("eval:")
    assert len(items[0].hashes) == 1
    assert items[0].texts[1] == pair(0, 0).caption
    moved = folder.rename(tmp_path / "moved")
    assert (
        EvaluationSets([moved]).fingerprint()
        != EvaluationSets([caption_shards(folder, 4)]).fingerprint()
    )


def test_lists_are_texts(tmp_path: Path) -> None:
    rows = [{"question": "what?", "answers": ["this", {"text": "that"}], "n": 3}, {"question": "x"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.txt").write_text("what?\nx\n")
    pq.write_table(pa.table({"question": ["what?", "x"]}), tmp_path / "c.parquet")
    for name, expected in (
        ("a.json", ["what?", "this", "that"]),
        ("b.jsonl", ["what?", "this", "that"]),
        ("c.parquet", ["what?"]),
        ("d.txt", ["what?"]),
    ):
        first, second = EvaluationSets([tmp_path / name])
        assert (first.name, first.texts) == (f"{name}:0", expected)
        assert (second.name, second.texts) == (f"{name}:1", ["x"])


def test_folders_are_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "eval" / "deep").mkdir(parents=True)
    (tmp_path / "eval" / "deep" / "1.png").write_bytes(
        encode(render(pair(0, 1).scene), "image/png")
    )
    (tmp_path / "eval" / "broken.jpg").write_bytes(b"not an image")
    broken, valid = EvaluationSets([tmp_path / "eval"])
    assert (broken.name, len(broken.digests), broken.hashes) == ("eval/broken.jpg", 1, [])
    assert (valid.name, len(valid.hashes)) == ("eval/deep/1.png", 1)
    assert caplog.messages == [
        f"--decontaminate {tmp_path}/eval/broken.jpg: cannot be read as an image"
    ]


def test_other_paths_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(b"not an image")
    for name, message in (
        ("none", "no such"),
        ("a.doc", "want one of"),
        ("empty", "neither"),
        ("broken", "none of its 1 images can be read"),
    ):
        with pytest.raises(UserError, match=message):
            EvaluationSets([tmp_path / name])
