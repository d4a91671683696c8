"""Rows that keep their positions when others are removed."""

import json
from dataclasses import replace

import numpy as np

from etl.storage.manifest import Manifest, Shard
from etl.storage.positions import POSITIONS, Positions, read_positions, remove_rows


def manifest(rows: int, digest: str, positions: Positions | None = None) -> Manifest:
    shard = Shard(path="shard-00000.arrow", rows=rows, bytes=1, sha256=digest)
    details = {} if positions is None else {POSITIONS: positions.to_json()}
    return Manifest(
        job="test",
        plan={},
        input_rows=rows,
        rows=rows,
        drops={},
        shards=(shard,),
        details=json.loads(json.dumps(details)),
    )


def test_rows_are_removed_by_their_numbers_in_the_first_version() -> None:
    whole = manifest(10, "a")
    assert read_positions(whole).rows == 10
    once = remove_rows(whole, [1, 2, 3, 9])
    assert once.to_json()["removed"] == [[1, 4], [9, 10]]
    twice = remove_rows(manifest(6, "b", once), [1, 5])  # rows 4 and 8 of the first version
    assert twice.to_json() == {
        "rows": 10,
        "removed": [[1, 5], [8, 10]],
        "versions": [
            {"shards": ["a"], "removed": []},
            {"shards": ["b"], "removed": [[1, 4], [9, 10]]},
        ],
    }
    read = read_positions(manifest(4, "c", twice))
    np.testing.assert_array_equal(read.removed_r, [1, 2, 3, 4, 8, 9])
    np.testing.assert_array_equal(read.versions[1].removed_r, once.removed_r)
    assert replace(read, removed_r=0, versions=()) == replace(twice, removed_r=0, versions=())


def test_nothing_may_be_removed() -> None:
    assert remove_rows(manifest(3, "a"), []).to_json()["removed"] == []
