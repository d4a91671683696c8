"""Global filters over staged units, without Ray."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from etl.cli import UserError
from etl.dedup.exact import FirstSeen
from etl.dedup.images import NearImages
from etl.dedup.texts import NearTexts
from etl.filters.base import Filter, FilterResult, StepYield
from etl.runtime.global_filters import (
    KEYS_FILE,
    global_filters,
    previous_rows,
    run_global_filters,
    save_keys,
)
from etl.runtime.job_state import KEYS, STAGED, JobState, UnitResult, write_table
from etl.runtime.options import JobOptions
from etl.runtime.worker import STAGED_SCHEMA
from etl.storage.manifest import read_manifest, write_manifest
from etl.storage.schema import Medium, Sample, Turn
from etl.storage.shards import shard_name, write_shard
from tests.worlds import caption_shards

NEAR = Filter(name="image dedup", function=NearImages(distance=4, identity="medium"))
SIMILAR = Filter(
    name="text dedup", function=NearTexts(similarity=0.7, identity="medium"), needs=("turns",)
)

FAR = 0xFFFF << 40


def exact() -> Filter:
    """A new exact deduplication filter."""
    return Filter(name="dedup", function=FirstSeen("key", "duplicate_medium"))


def sample(number: int, text: str) -> Sample:
    medium = Medium(kind="image", data=b"x", mime="image/png", sha256="0" * 64, width=1, height=1)
    turns = (Turn(role="user", text="<image>"), Turn(role="assistant", text=text))
    return Sample(id=f"id-{number}", source="t", turns=turns, media=(medium,))


def stage(output: Path, *units: Sequence[tuple[str, int, str]]) -> tuple[JobState, list[int]]:
    """Stage units of (key, perceptual hash, text) rows; returns the state and their row counts."""
    state = JobState(output)
    state.work.mkdir(parents=True)
    row = 0
    for number, rows in enumerate(units):
        kept = []
        with state.open_unit(number) as folder:
            samples = []
            for key, phash, text in rows:
                named = {"row": row, "id": f"id-{row}", "url": f"http://web/{row}"}
                kept.append({**named, "key": key, "phash": [phash]})
                samples.append(sample(row, text))
                row += 1
            shard = write_shard(folder, STAGED, samples) if samples else None
            write_table(folder / KEYS, pa.Table.from_pylist(kept, schema=STAGED_SCHEMA))
            state.commit_unit(folder, UnitResult(number=number, yields=(), shard=shard))
    return state, [len(rows) or 1 for rows in units]


def test_each_drop_has_the_first_reason_that_applies(tmp_path: Path) -> None:
    state, unit_rows = stage(
        tmp_path / "out",
        [("a", 0b0001, "one"), ("b", FAR, "two")],
        [],
        [("a", 0b0001, "three"), ("c", 0b0010, "four"), ("d", 2**64 - 1, "five")],
    )
    result = run_global_filters(state, [2, 1, 3], [exact(), NEAR])
    assert unit_rows == [2, 1, 3]
    assert result.rows == {0: [0, 1], 1: [], 2: [4]}
    drops = result.drops.select(["row", "step", "reason", "detail"]).to_pylist()
    assert drops == [
        {"row": 2, "step": "dedup", "reason": "duplicate_medium", "detail": None},
        {
            "row": 3,
            "step": "image dedup",
            "reason": "near_duplicate_image",
            "detail": "2 bits from row 0",
        },
    ]
    assert result.yields == (
        StepYield(step="dedup", rows_in=5, rows_out=4),
        StepYield(step="image dedup", rows_in=4, rows_out=3),
    )
    assert result.keys.to_pylist() == [
        {"shard": 0, "row": 0, "key": "a", "phash": [1]},
        {"shard": 0, "row": 1, "key": "b", "phash": [FAR]},
        {"shard": 2, "row": 4, "key": "d", "phash": [2**64 - 1]},
    ]


def test_texts_are_loaded_for_filters_that_need_them(tmp_path: Path) -> None:
    text = "what a long caption this one is for a picture"
    rows = [("a", 0, text), ("b", 0, "another caption"), ("c", 0, f"{text} indeed")]
    state, unit_rows = stage(tmp_path / "out", rows[:2], [], rows[2:])
    result = run_global_filters(state, unit_rows, [exact(), SIMILAR])
    assert result.rows == {0: [0, 1], 1: [], 2: []}
    assert result.drops["detail"].to_pylist() == ["like row 0"]


def test_a_custom_filter(tmp_path: Path) -> None:
    state, unit_rows = stage(tmp_path / "out", [("a", 0, "x"), ("b", 0, "y")], [("c", 0, "z")])

    def last_only(table: pa.Table) -> FilterResult:
        return FilterResult(reasons=["not_last"] * (table.num_rows - 1) + [None])

    assert run_global_filters(state, unit_rows, [Filter(name="last", function=last_only)]).rows == {
        0: [],
        1: [2],
    }


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A complete folder with two dissimilar rows in shard 0."""
    folder = caption_shards(tmp_path / "out", 2)
    manifest = read_manifest(folder)
    (folder / manifest.shards[0].path).rename(folder / shard_name(0))
    shards = (dataclasses.replace(manifest.shards[0], path=shard_name(0)),)
    write_manifest(folder, dataclasses.replace(manifest, shards=shards))
    keys = [("a", 0b0001), ("b", FAR)]
    found = [
        {"shard": 0, "row": 7 + row, "key": key, "phash": [phash]}
        for row, (key, phash) in enumerate(keys)
    ]
    lost = {"shard": 1, "row": 99, "key": "lost", "phash": [0b1111]}  # from a killed retry
    save_keys(folder, [pa.Table.from_pylist([*found, lost])])
    return folder


@pytest.mark.parametrize("filters", [(NEAR,), (NEAR, SIMILAR)])
def test_rows_of_an_earlier_run_are_kept(complete: Path, filters: Sequence[Filter]) -> None:
    filters = [exact(), *filters]
    previous = previous_rows(complete, read_manifest(complete), filters)
    rows = [("b", 5, "some words"), ("x", 0b0011, "other words"), ("lost", 0b11111100, "more")]
    state, unit_rows = stage(complete, rows)
    result = run_global_filters(state, unit_rows, filters, previous=previous)
    assert result.rows == {0: [2]}
    assert dict(
        zip(result.drops["reason"].to_pylist(), result.drops["detail"].to_pylist(), strict=True)
    ) == {
        "duplicate_medium": None,
        "near_duplicate_image": "1 bits from row 7",
    }
    assert pc.unique(result.keys["row"]).to_pylist() == [2]


def test_missing_or_foreign_keys_are_reported(complete: Path) -> None:
    manifest = read_manifest(complete)
    save_keys(
        complete,
        [
            previous_rows(complete, manifest, [])
            .slice(1)
            .select(["row"])
            .slice(1)
            .append_column("shard", pa.array([], pa.int64()))
        ],
    )
    with pytest.raises(UserError, match="0 rows, but the manifest has 2"):
        previous_rows(complete, manifest, [])
    (complete / KEYS_FILE).unlink()
    with pytest.raises(UserError, match=KEYS_FILE):
        previous_rows(complete, manifest, [])


def test_options_select_the_filters(tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("x\n")
    given = {"input": tmp_path, "output": tmp_path}
    plain = JobOptions(**given)
    assert [one.name for one in global_filters(plain, "medium")] == ["dedup"]
    everything = JobOptions(
        **given,
        image_dedup_distance=0,
        text_dedup_similarity=0.8,
        decontaminate=(tmp_path / "eval.txt",),
    )
    names = ["dedup", "image dedup", "text dedup", "image decontamination", "text decontamination"]
    assert [one.name for one in global_filters(everything, "record")] == names
    (tmp_path / "eval.txt").rename(tmp_path / "moved.txt")
    moved = dataclasses.replace(everything, decontaminate=(tmp_path / "moved.txt",))
    assert len(moved.config["decontaminate"][0]) == 64
    (tmp_path / "moved.txt").write_text("y\n")
    assert moved.config["decontaminate"] != plain.config["decontaminate"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_dedup_distance": 11}, "--image-dedup-distance 11: want 0 to 10 bits"),
        ({"text_dedup_similarity": 0.0}, "--text-dedup-similarity 0.0: want above 0"),
        ({"eval_distance": -1}, "--eval-distance -1: want 0 to 10 bits"),
        ({"decontaminate": (Path("nowhere"),)}, "--decontaminate nowhere: no such"),
    ],
)
def test_bad_options_are_reported(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        JobOptions(input=tmp_path, output=tmp_path, **values)
