"""The policy: which rows their scores let through.

Scores, published and computed, are columns of every sample. What is too little and what too much of
them is said in one place and applied by one step, before the download or, by `etl/refilter.py`, to
shards that lie there; so filtering again needs no second download.
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
from etl.filters.base import Verdict


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a score must be: at least `least`, and at most `most`, as far as they are given."""

    score: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """An operation that drops rows whose scores lie outside their bounds.

    The reason is that of the first bound that does not hold: `NAME_too_low` or `NAME_too_high`. A
    row without a score is not judged by it. Scores have the 24 bits of a float32, so the bounds are
    rounded to that, too: a score that was published as 0.8 is not above 0.8.
    """

    bounds: tuple[Bound, ...]

    def __call__(self, table: pa.Table) -> Verdict:
        """Judge a batch.

        Args:
            table: has the scores as float32 columns `score.NAME`; absent ones are null in all rows.
        """
        reasons = pa.nulls(table.num_rows, pa.string())
        for bound in self.bounds:
            column = f"score.{bound.score}"
            if column in table.column_names:
                reasons = pc.coalesce(reasons, _judge(table[column].combine_chunks(), bound))
        return Verdict(reasons=reasons.to_pylist())


def _judge(values: pa.Array, bound: Bound) -> pa.Array:
    found = pa.nulls(len(values), pa.string())
    if bound.most is not None:
        high = pc.fill_null(pc.greater(values, np.float32(bound.most)), False)
        found = pc.if_else(high, f"{bound.score}_too_high", found)
    if bound.least is not None:
        low = pc.fill_null(pc.less(values, np.float32(bound.least)), False)
        found = pc.if_else(low, f"{bound.score}_too_low", found)
    return found


def read_bounds(minimum: Sequence[str], maximum: Sequence[str], known: Collection[str]) -> Policy:
    """The policy that `--minimum NAME=VALUE …` and `--maximum NAME=VALUE …` ask for.

    Args:
        minimum: words such as `similarity=0.3`.
        maximum: likewise.
        known: the names of scores that there are.

    Raises:
        UserError: a word has another form, or no score has that name.
    """
    least = [_bound("--minimum", word, known) for word in minimum]
    most = [_bound("--maximum", word, known) for word in maximum]
    return Policy(
        bounds=(
            *(Bound(score=name, least=value) for name, value in least),
            *(Bound(score=name, most=value) for name, value in most),
        )
    )


def _bound(option: str, word: str, known: Collection[str]) -> tuple[str, float]:
    name, _, number = word.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(f"{option} {word}: want a score and a number, as in punsafe=0.5")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{option} {word}: no score {name!r} among {', '.join(known)}{hint}")
    return name, value
