"""Samples that were removed from a run's data: all others keep their positions."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from etl.refilter import run as refilter
from etl.storage.shards import ShardSet, write_folder
from model.presets import system
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig
from pipeline.data.packing import PackedLayout
from pipeline.data.removed import read_removed
from pipeline.data.sampler import BatchSampler, CostModel, build_stream, steps_with
from tests.worlds import text_sample

ROWS = 30


def folder(path: Path, first: int) -> Path:
    samples = [text_sample(0, first + row) for row in range(ROWS)]
    for row, sample in enumerate(samples):
        object.__setattr__(sample, "lineage", {"url": f"http://{row % 3}/{sample.id}"})
    return write_folder(path, samples, job="test", rows_per_shard=8)


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    return [folder(tmp_path / "a", 0), folder(tmp_path / "b", 100)]


def without(path: Path, *patterns: str, name: str = "filtered") -> Path:
    output = path.parent / name / path.name
    words = ["--input", str(path), "--output", str(output), "--keep-positions"]
    refilter([*words, "--exclude-urls", *patterns, "--executor", "local"])
    return output


def sampler(folders: list[Path]) -> BatchSampler:
    run = RunConfig(
        stage="pt",
        system=system("digits"),
        data=tuple(map(str, folders)),
        output="run",
        mix=Mix(shares=("b=0.5",)),
    )
    stream, removed = build_stream(run)
    return BatchSampler(
        stream=stream,
        removed=removed,
        global_batch=4,
        layout=PackedLayout(max_tokens=8, max_media=8),
        lengths=None,
        cost_model=CostModel(per_medium={}),
    )


def plan(folders: list[Path]) -> list[dict[int, str]]:
    """Return the samples of each step: the position and the id of each."""
    found, shards = sampler(folders), ShardSet(folders)
    return [
        {
            ref.position: shards[ref.row].id
            for bins in found.step(step, ranks=2)
            for refs in bins
            for ref in refs
        }
        for step in range(found.steps)
    ]


def test_other_samples_keep_their_positions(data: list[Path]) -> None:
    before = plan(data)
    removed = {sample.id for sample in ShardSet(data) if sample.lineage["url"][7] == "1"}
    expected = [{p: i for p, i in step.items() if i not in removed} for step in before]
    once = [without(path, "http://1/*") for path in data]
    assert len(removed) == 20
    assert plan(once) == expected
    assert plan([once[0], data[1]]) != expected
    twice = [once[0], without(once[1], "http://2/*", name="again")]
    for step, (one, other) in enumerate(zip(plan(twice), expected, strict=True)):
        assert one.items() <= other.items(), step
    assert sum(map(len, plan(twice))) < sum(map(len, expected))


def test_older_data_are_known_by_their_fingerprint(data: list[Path]) -> None:
    once = [without(data[0], "http://1/*"), data[1]]
    twice = [once[0], without(data[1], "http://1/*")]
    older = {each.fingerprint: each.removed_r for each in read_removed(twice).older_data()}
    assert set(older) == {
        ShardSet(folders).fingerprint for folders in (data, once, [data[0], twice[1]])
    }
    assert [len(older[ShardSet(folders).fingerprint]) for folders in (data, once)] == [20, 10]
    assert list(read_removed(data).older_data()) == []
    digest = hashlib.sha256(b"").hexdigest()
    assert digest not in older


def test_steps_with_some_samples(data: list[Path]) -> None:
    stream = sampler(data).stream
    rows = np.array([3, 40])
    planned = stream.rows(0, len(stream)).tolist()
    positions = [position for position, row in enumerate(planned) if row in rows]
    expected = sorted({position // 4 + 1 for position in positions})
    steps = range(1, len(stream) // 4 + 2)
    assert steps_with(stream, 4, rows, steps, skipped=()) == expected
    assert steps_with(stream, 4, rows, steps, skipped=positions) == []
    assert steps_with(stream, 4, rows, range(1, expected[0]), skipped=()) == []


def test_rows_are_converted_both_ways(data: list[Path]) -> None:
    removed = read_removed([without(data[0], "http://1/*"), data[1]])
    present = np.array([row for row in range(2 * ROWS) if row >= ROWS or row % 3 != 1])
    np.testing.assert_array_equal(removed.present_rows(present), np.arange(len(present)))
    np.testing.assert_array_equal(removed.first_rows(np.arange(len(present))), present)
    assert removed.contains(np.arange(2 * ROWS)).sum() == 10
