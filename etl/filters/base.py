"""Filters: functions on a batch that keep each row or drop it with a reason, and their counts.

A filter function takes a table and returns a `FilterResult`; it never removes rows itself.
`run_filters` removes them and records each, so that no row disappears without a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class FilterResult:
    """What a filter decided about a batch.

    `reasons` has one entry per row: None keeps the row. `details` may say more about each (an error
    message). `columns` are new columns of the batch's length; values of dropped rows are ignored.
    """

    reasons: Sequence[str | None]
    details: Sequence[str | None] | None = None
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


FilterFunction = Callable[[pa.Table], FilterResult]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A named filter; the name appears in the report and in `drops.parquet` (`step`).

    `needs` names columns that must be loaded for it, besides those that are always present.
    """

    name: str
    function: FilterFunction
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepYield:
    """How many rows entered and left a step: a filter, the download or the decoding."""

    step: str
    rows_in: int
    rows_out: int


DROPS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One dropped row: its number in the input, its id and URL, and why it was dropped."""


@dataclass(frozen=True, kw_only=True)
class FilteredBatch:
    """A filtered batch: `kept` and `drops` (schema `DROPS`) together are all of its rows."""

    kept: pa.Table
    drops: pa.Table
    yields: tuple[StepYield, ...]


def run_filters(table: pa.Table, filters: Sequence[Filter]) -> FilteredBatch:
    """Run filters over a batch; a row that one filter drops is not shown to the next.

    Args:
        table: has the columns `row`, `id` and `url`, and the columns that the filters need.
        filters: in order.

    Raises:
        ValueError: a filter did not return a reason for every row.
    """
    drops = [DROPS.empty_table()]
    yields = []
    for one in filters:
        result = one.function(table)
        if len(result.reasons) != table.num_rows:
            raise ValueError(
                f"filter {one.name}: {len(result.reasons)} reasons for {table.num_rows} rows"
            )
        for name, column in result.columns.items():
            table = table.append_column(name, column)
        reasons = pa.array(result.reasons, pa.string())
        drops.append(_drops(table, one.name, reasons, result.details))
        kept = table.filter(reasons.is_null())
        yields.append(StepYield(step=one.name, rows_in=table.num_rows, rows_out=kept.num_rows))
        table = kept
    return FilteredBatch(kept=table, drops=pa.concat_tables(drops), yields=tuple(yields))


def _drops(
    table: pa.Table, step: str, reasons: pa.Array, details: Sequence[str | None] | None
) -> pa.Table:
    detail = pa.nulls(table.num_rows, pa.string()) if details is None else pa.array(details)
    columns = {
        "row": table["row"],
        "id": table["id"],
        "url": table["url"],
        "step": pa.array([step] * table.num_rows, pa.string()),
        "reason": reasons,
        "detail": detail.cast(pa.string()),
    }
    return pa.table(columns, schema=DROPS).filter(reasons.is_valid())


def add_yields(parts: Sequence[Sequence[StepYield]]) -> tuple[StepYield, ...]:
    """Sum the yields of many batches by step, in order of first appearance."""
    totals: dict[str, StepYield] = {}
    for found in (found for part in parts for found in part):
        before = totals.get(found.step, StepYield(step=found.step, rows_in=0, rows_out=0))
        totals[found.step] = StepYield(
            step=found.step,
            rows_in=before.rows_in + found.rows_in,
            rows_out=before.rows_out + found.rows_out,
        )
    return tuple(totals.values())
