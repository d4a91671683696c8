"""Scores that are computed after the download: a table next to each unit's staged rows.

It is in the unit's folder, is written atomically, and has a row for each staged row, in order. So a
unit whose folder is removed is scored again, and no other.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from etl.runtime.job_state import JobState, read_table
from etl.storage.schema import SCHEMA

SCORES = "scores.arrow"


def scores_path(state: JobState, number: int) -> Path:
    """Table of a unit's computed scores: columns `score.NAME` (float32)."""
    return state.unit_folder(number) / SCORES


def keys_and_scores(state: JobState, number: int) -> pa.Table:
    """A unit's staged rows (see `JobState.keys_path`) with their computed scores, if any."""
    keys = read_table(state.keys_path(number))
    path = scores_path(state, number)
    if path.exists():
        scores = read_table(path)
        for name in scores.column_names:
            keys = keys.append_column(name, scores[name])
    return keys


def with_scores(samples: pa.Table, scores: pa.Table) -> pa.Table:
    """Samples (`SCHEMA`) with further scores added, except nulls."""
    field = SCHEMA.field("scores")
    rows = zip(samples["scores"].to_pylist(), scores.to_pylist(), strict=True)
    merged = []
    for published, row in rows:
        computed = {k.removeprefix("score."): v for k, v in row.items() if v is not None}
        merged.append([*{**dict(published or ()), **computed}.items()])
    index = samples.schema.get_field_index("scores")
    return samples.set_column(index, field, pa.array(merged, field.type))
