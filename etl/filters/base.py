"""Steps: an operation on a batch, with counters and a reason for every row that it drops.

An operation is a plain function from a table to a `Verdict`; it never removes rows by itself.
`run_steps` removes them and keeps the books, so that no row leaves without a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an operation found out about a batch.

    `reasons` has one entry per row: None keeps the row. `details` may say more about each (an error
    message). `columns` are new columns of the batch's length; what dropped rows hold there is lost.
    """

    reasons: Sequence[str | None]
    details: Sequence[str | None] | None = None
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


Operation = Callable[[pa.Table], Verdict]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A named operation; the name stands in the report's yields.

    `needs` are columns that must be brought together for it, besides those that are always there.
    """

    name: str
    operation: Operation
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepYield:
    """How many rows went into a step and how many came out."""

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
"""One dropped row: where it stood in the input, what it was, and why it went."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a batch: `kept` and `drops` (schema `DROPS`) together are all of its rows."""

    kept: pa.Table
    drops: pa.Table
    yields: tuple[StepYield, ...]


def run_steps(table: pa.Table, steps: Sequence[Step]) -> Outcome:
    """Run a batch through steps; a row that one step drops is not shown to the next.

    Args:
        table: has the columns `row`, `id` and `url`, and whatever the operations need.
        steps: in order.

    Raises:
        ValueError: an operation did not answer for every row.
    """
    drops = [DROPS.empty_table()]
    yields = []
    for step in steps:
        verdict = step.operation(table)
        if len(verdict.reasons) != table.num_rows:
            raise ValueError(
                f"step {step.name}: {len(verdict.reasons)} answers for {table.num_rows} rows"
            )
        for name, column in verdict.columns.items():
            table = table.append_column(name, column)
        reasons = pa.array(verdict.reasons, pa.string())
        drops.append(_drops(table, step.name, reasons, verdict.details))
        kept = table.filter(reasons.is_null())
        yields.append(StepYield(step=step.name, rows_in=table.num_rows, rows_out=kept.num_rows))
        table = kept
    return Outcome(kept=table, drops=pa.concat_tables(drops), yields=tuple(yields))


def _drops(
    table: pa.Table, step: str, reasons: pa.Array, details: Sequence[str | None] | None
) -> pa.Table:
    said = pa.nulls(table.num_rows, pa.string()) if details is None else pa.array(details)
    columns = {
        "row": table["row"],
        "id": table["id"],
        "url": table["url"],
        "step": pa.array([step] * table.num_rows, pa.string()),
        "reason": reasons,
        "detail": said.cast(pa.string()),
    }
    return pa.table(columns, schema=DROPS).filter(reasons.is_valid())


def add_yields(parts: Sequence[Sequence[StepYield]]) -> tuple[StepYield, ...]:
    """Sum the yields of many batches by step, in the order of the steps' first appearance."""
    totals: dict[str, StepYield] = {}
    for found in (found for part in parts for found in part):
        before = totals.get(found.step, StepYield(step=found.step, rows_in=0, rows_out=0))
        totals[found.step] = StepYield(
            step=found.step,
            rows_in=before.rows_in + found.rows_in,
            rows_out=before.rows_out + found.rows_out,
        )
    return tuple(totals.values())
