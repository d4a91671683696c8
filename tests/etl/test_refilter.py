"""Filtering existing shards, without a download."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import etl.refilter
from etl.cli import UserError
from etl.digits.records import pair_sample
from etl.runtime.worker_pool import WorkerPool
from etl.storage.manifest import read_manifest
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder

ROWS = 20


def scored(row: int) -> Sample:
    """Scores and captions by row; every fifth has no score, the last one is not a pair."""
    sample = pair_sample(0, row)
    scores = {} if row % 5 == 0 else {"similarity": row / ROWS, "punsafe": 1 - row / ROWS}
    turns = sample.turns
    if row == 1:
        turns = (turns[0], Turn(role="assistant", text="悬崖上的灯塔"))
    if row == ROWS - 1:
        turns = (*turns, Turn(role="user", text="?"), Turn(role="assistant", text="!"))
    lineage = {"url": f"http://web/{row}"}
    return dataclasses.replace(sample, scores=scores, turns=turns, lineage=lineage)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    samples = map(scored, range(ROWS))
    return write_folder(tmp_path / "shards", samples, job="worlds", rows_per_shard=6)


def refilter(shards: Path, output: Path, *args: str) -> dict[int, str]:
    """The reasons of the rows that were dropped."""
    etl.refilter.run(["--input", str(shards), "--output", str(output), *args])
    manifest = read_manifest(output)
    drops = pq.read_table(output / "drops.parquet")
    assert manifest.input_rows == ROWS == manifest.rows + drops.num_rows
    assert not (output / ".work").exists()
    return dict(zip(drops["row"].to_pylist(), drops["reason"].to_pylist(), strict=True))


def rows(folder: Path) -> list[Sample]:
    found = ShardSet([folder])
    return [found[index] for index in range(len(found))]


def test_rows_are_filtered_by_scores_and_do_not_change(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    args = ["--minimum", "similarity=0.25", "--maximum", "punsafe=0.6"]
    found = refilter(shards, output, *args)
    low = dict.fromkeys((1, 2, 3, 4), "similarity_too_low")
    assert found == {**low, **dict.fromkeys((6, 7), "punsafe_too_high")}
    assert rows(output) == [one for row, one in enumerate(rows(shards)) if row not in found]
    manifest = read_manifest(output)
    assert [shard.rows for shard in manifest.shards] == [2, 4, 6, 2]
    assert manifest.details["input"]["job"] == "worlds"
    drops = pq.read_table(output / "drops.parquet").to_pylist()
    assert (drops[0]["url"], drops[0]["step"]) == ("http://web/1", "policy")
    assert "similarity_too_low" in (output / "report.html").read_text()


def test_policies_can_be_applied_one_after_the_other(shards: Path, tmp_path: Path) -> None:
    refilter(shards, tmp_path / "a", "--minimum", "similarity=0.25")
    args = ["--input", str(tmp_path / "a"), "--output", str(tmp_path / "b")]
    etl.refilter.run([*args, "--maximum", "punsafe=0.6"])
    refilter(shards, tmp_path / "c", "--minimum", "similarity=0.25", "--maximum", "punsafe=0.6")
    assert rows(tmp_path / "b") == rows(tmp_path / "c")


def test_rows_are_filtered_by_captions_languages_and_sizes(shards: Path, tmp_path: Path) -> None:
    assert refilter(shards, tmp_path / "a", "--languages", "en", "und") == {1: "language"}
    assert refilter(shards, tmp_path / "b", "--max-caption", "5") == dict.fromkeys(
        [0, *range(2, ROWS - 1)], "caption_too_long"
    ) | {1: "caption_too_long"}
    assert set(refilter(shards, tmp_path / "c", "--min-side", "97").values()) == {"too_small"}
    assert refilter(shards, tmp_path / "d", "--min-side", "96", "--max-aspect", "1") == {}


def test_all_rows_may_be_dropped(shards: Path, tmp_path: Path) -> None:
    assert len(refilter(shards, tmp_path / "out", "--min-side", "1000")) == ROWS
    assert read_manifest(tmp_path / "out").shards == ()


def test_a_second_run_does_nothing_and_another_policy_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    args = ["--minimum", "similarity=0.25"]
    refilter(shards, output, *args)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    refilter(shards, output, *args, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 16
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    with pytest.raises(UserError, match=r"belongs to another job \(minimum"):
        refilter(shards, output, "--minimum", "similarity=0.5")


def test_a_killed_run_resumes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refilter(shards, tmp_path / "whole", "--minimum", "similarity=0.25")
    output = tmp_path / "out"
    map_unordered = WorkerPool.map_unordered

    def killed(self, name: str, build, items: list) -> Iterator:
        yield from map_unordered(self, name, build, items[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "map_unordered", killed)
        with pytest.raises(KeyboardInterrupt):
            refilter(shards, output, "--minimum", "similarity=0.25")
    assert not (output / "manifest.json").exists()
    (output / "shard-00001.arrow").write_bytes(b"")  # damaged since
    refilter(shards, output, "--minimum", "similarity=0.25")
    for shard in read_manifest(tmp_path / "whole").shards:
        name = shard.path
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_manifest(output) == read_manifest(tmp_path / "whole")


def test_mistakes_are_reported_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    cases = {
        ("--minimum", "similarty=0.3"): "no score 'similarty' among punsafe, similarity; did you",
        ("--languages", "klingon"): "--languages klingon: want codes",
        ("--min-words", "3", "--max-words", "2"): "--min-words 3: want at most --max-words 2",
        ("--output", str(shards)): "want another folder than --input",
        ("--input", str(tmp_path)): r"no manifest.json",
    }
    for args, message in cases.items():
        with pytest.raises(UserError, match=message):
            refilter(shards, output, *args)
        assert not output.exists()


def test_a_damaged_shard_is_not_copied(shards: Path, tmp_path: Path) -> None:
    path = shards / "shard-00002.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00002.arrow: shard is damaged"):
        refilter(shards, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_samples_are_excluded_by_their_urls(shards: Path, tmp_path: Path) -> None:
    patterns = ["http://web/1*", "http://WEB/7"]
    found = refilter(shards, tmp_path / "a", "--exclude-urls", *patterns)
    assert found == dict.fromkeys((1, 7, *range(10, 20)), "excluded_url")
    assert "positions" not in read_manifest(tmp_path / "a").details
    refilter(shards, tmp_path / "b", "--exclude-urls", *patterns, "--keep-positions")
    positions = read_manifest(tmp_path / "b").details["positions"]
    assert positions["removed"] == [[1, 2], [7, 8], [10, 20]]
    assert positions["rows"] == ROWS
