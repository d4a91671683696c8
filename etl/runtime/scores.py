"""Scores that are computed after the download: a table beside each range's staged rows.

It lies in the range's folder, appears whole, and has a row for each staged row, in their order. So
a range whose folder goes has to be judged again, and no other.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from etl.runtime.job_state import Ledger, read_table
from etl.storage.schema import SCHEMA

COMPUTED = "scores.arrow"


def computed_path(ledger: Ledger, number: int) -> Path:
    """Table of a range's computed scores: columns `score.NAME` (float32)."""
    return ledger.range_path(number) / COMPUTED


def keys_and_scores(ledger: Ledger, number: int) -> pa.Table:
    """A range's staged rows (see `Ledger.keys_path`), and the scores computed of them, if any."""
    keys = read_table(ledger.keys_path(number))
    path = computed_path(ledger, number)
    if path.exists():
        scores = read_table(path)
        for name in scores.column_names:
            keys = keys.append_column(name, scores[name])
    return keys


def with_scores(samples: pa.Table, scores: pa.Table) -> pa.Table:
    """Samples (`SCHEMA`) with further scores, where those are not null."""
    kinds = SCHEMA.field("scores")
    rows = zip(samples["scores"].to_pylist(), scores.to_pylist(), strict=True)
    merged = []
    for before, row in rows:
        told = {k.removeprefix("score."): v for k, v in row.items() if v is not None}
        merged.append([*{**dict(before or ()), **told}.items()])
    place = samples.schema.get_field_index("scores")
    return samples.set_column(place, kinds, pa.array(merged, kinds.type))
