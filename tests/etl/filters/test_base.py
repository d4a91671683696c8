import functools

import pyarrow as pa
import pytest

from etl.filters.base import DROPS, Filter, FilterResult, StepYield, add_yields, run_filters


def table(rows: int) -> pa.Table:
    numbers = range(rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "id": [f"id-{number}" for number in numbers],
            "url": [f"http://example.com/{number}" for number in numbers],
        }
    )


def drop_multiples(found: pa.Table, *, of: int, reason: str) -> FilterResult:
    rows = found["row"].to_pylist()
    return FilterResult(
        reasons=[None if row % of else reason for row in rows],
        details=[f"row {row}" for row in rows],
        columns={f"by_{of}": pa.array([row // of for row in rows])},
    )


def drop_filter(of: int) -> Filter:
    function = functools.partial(drop_multiples, of=of, reason=f"multiple_of_{of}")
    return Filter(name=f"no {of}", function=function)


def test_every_row_is_kept_or_dropped_with_a_reason() -> None:
    result = run_filters(table(12), [drop_filter(2), drop_filter(3)])
    assert result.kept["row"].to_pylist() == [1, 5, 7, 11]
    assert result.kept["by_3"].to_pylist() == [0, 1, 2, 3]
    assert result.drops.schema == DROPS
    assert result.drops["row"].to_pylist() == [0, 2, 4, 6, 8, 10, 3, 9]
    assert result.drops["reason"].to_pylist() == ["multiple_of_2"] * 6 + ["multiple_of_3"] * 2
    assert result.drops["detail"][-1].as_py() == "row 9"
    assert result.yields == (
        StepYield(step="no 2", rows_in=12, rows_out=6),
        StepYield(step="no 3", rows_in=6, rows_out=4),
    )


def test_an_empty_batch_passes() -> None:
    result = run_filters(table(0), [drop_filter(2)])
    assert (result.kept.num_rows, result.drops.num_rows) == (0, 0)


def test_a_filter_must_return_a_reason_for_every_row() -> None:
    forgetful = Filter(name="forgetful", function=lambda found: FilterResult(reasons=[None]))
    with pytest.raises(ValueError, match="filter forgetful: 1 reasons for 3 rows"):
        run_filters(table(3), [forgetful])


def test_yields_of_batches_add_up() -> None:
    parts = [run_filters(table(rows), [drop_filter(2), drop_filter(3)]).yields for rows in (12, 6)]
    assert add_yields(parts) == (
        StepYield(step="no 2", rows_in=18, rows_out=9),
        StepYield(step="no 3", rows_in=9, rows_out=6),
    )
