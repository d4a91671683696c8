"""The score policy: lower and upper bounds on the scores of rows that are kept.

Scores, published and computed, are columns of every sample. Their bounds are stated in one place
and applied by one filter, before the download or, by `etl/refilter.py`, to existing shards; so
filtering again needs no second download.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.cli import UserError
from etl.filters.base import FilterResult


@dataclass(frozen=True, kw_only=True)
class ScoreBound:
    """The bounds of a score: at least `minimum` and at most `maximum`, where these are given."""

    score: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A filter function that drops rows with a score outside its bounds.

    The reason is that of the first violated bound: `NAME_too_low` or `NAME_too_high`. A row without
    a score passes that bound. Scores have the 24 bits of a float32, so the bounds are rounded to
    that, too: a score that was published as 0.8 is not above 0.8.
    """

    bounds: tuple[ScoreBound, ...]

    def __call__(self, table: pa.Table) -> FilterResult:
        """Filter a batch.

        Args:
            table: has the scores as float32 columns `score.NAME`; a missing column counts as null.
        """
        reasons = pa.nulls(table.num_rows, pa.string())
        for bound in self.bounds:
            column = f"score.{bound.score}"
            if column in table.column_names:
                reasons = pc.coalesce(reasons, _reasons(table[column].combine_chunks(), bound))
        return FilterResult(reasons=reasons.to_pylist())


def _reasons(values: pa.Array, bound: ScoreBound) -> pa.Array:
    reasons = pa.nulls(len(values), pa.string())
    if bound.maximum is not None:
        high = pc.fill_null(pc.greater(values, np.float32(bound.maximum)), False)
        reasons = pc.if_else(high, f"{bound.score}_too_high", reasons)
    if bound.minimum is not None:
        low = pc.fill_null(pc.less(values, np.float32(bound.minimum)), False)
        reasons = pc.if_else(low, f"{bound.score}_too_low", reasons)
    return reasons


def read_bounds(minimum: Sequence[str], maximum: Sequence[str], known: Collection[str]) -> Policy:
    """The policy of the options `--minimum NAME=VALUE …` and `--maximum NAME=VALUE …`.

    Args:
        minimum: values such as `similarity=0.3`.
        maximum: likewise.
        known: the names of the available scores.

    Raises:
        UserError: a value is not of this form, or no score has that name.
    """
    lower = [_bound("--minimum", text, known) for text in minimum]
    upper = [_bound("--maximum", text, known) for text in maximum]
    return Policy(
        bounds=(
            *(ScoreBound(score=name, minimum=value) for name, value in lower),
            *(ScoreBound(score=name, maximum=value) for name, value in upper),
        )
    )


def _bound(option: str, text: str, known: Collection[str]) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(f"{option} {text}: want a score and a number, as in punsafe=0.5")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{option} {text}: no score {name!r} among {', '.join(known)}{hint}")
    return name, value
