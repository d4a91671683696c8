"""Metrics that can be resampled: bootstrap intervals, and paired comparisons of two predictions.

Shapes: n rows (usually answered questions), k columns, c cells of a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etl.cli import UserError

Array = NDArray[np.float64]
Scores = Mapping[str, Mapping[str, float]]
"""Split → metric → value."""
SEED = 0
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as a function of how often each row counts.

    Args:
        units: the unit of each row; rows of one unit are resampled together (an image with both of
            its questions, a question with all rotations of its options).
        at: returns the metric where row i counts `weights_n[i]` times.
    """

    units: Sequence[str]
    at: Callable[[Array], float]

    @property
    def value(self) -> float:
        """The metric of all rows, each counted once."""
        return self.at(np.ones(len(self.units)))


Metrics = Mapping[str, Mapping[str, Metric]]
"""Split → metric."""


def ratio(part: Any, whole: Any) -> float:  # noqa: ANN401 - numbers of Python and NumPy
    """Return part / whole, and 0 where there is nothing."""
    return float(part / whole) if whole else 0.0


def mean_metric(points: Sequence[float], units: Sequence[str], *, scale: float = 1.0) -> Metric:
    """Return the mean of each row's points, times `scale`."""
    points_n = np.asarray(points, dtype=np.float64)
    return Metric(units=units, at=lambda w_n: scale * ratio(w_n @ points_n, w_n.sum()))


def accuracies(rows: Mapping[str, Sequence[tuple[float, str]]]) -> dict[str, dict[str, Metric]]:
    """Return the mean of the points of each split's rows, (points, unit) of each."""
    return {
        split: {"accuracy": mean_metric([points for points, _ in some], [unit for _, unit in some])}
        for split, some in rows.items()
    }


def sums_metric(
    columns_nk: Sequence[Sequence[float]],
    units: Sequence[str],
    formula: Callable[[Array], float],
) -> Metric:
    """Return a formula of the sums of columns, such as F1 of true and predicted positives."""
    array_nk = np.asarray(columns_nk, dtype=np.float64)
    return Metric(units=units, at=lambda w_n: formula(w_n @ array_nk))


def auc_metric(
    scores: Sequence[float], positive: Sequence[bool], units: Sequence[str], *, scale: float = 1.0
) -> Metric:
    """Return the area under the ROC curve: how often a positive row outscores a negative one.

    Ties count half, as in scikit-learn's `roc_auc_score`; without rows of both kinds it is 0.
    """
    _, rank_n = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    positive_n = np.asarray(positive, dtype=np.float64)

    def at(w_n: Array) -> float:
        positives_c = np.bincount(rank_n, w_n * positive_n)
        negatives_c = np.bincount(rank_n, w_n * (1 - positive_n))
        below_c = np.cumsum(negatives_c) - negatives_c / 2
        pairs = positives_c.sum() * negatives_c.sum()
        return scale * ratio(positives_c @ below_c, pairs)

    return Metric(units=units, at=at)


def values(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return the value of each metric."""
    return {
        split: {name: metric.value for name, metric in named.items()}
        for split, named in metrics.items()
    }


def intervals(
    metrics: Metrics, *, resamples: int, seed: int = SEED
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the percentile bootstrap interval of each metric (Efron and Tibshirani 1993, ch. 13).

    Args:
        metrics: to resample.
        resamples: how often the units are resampled, with replacement.
        seed: of the resamples, which are the same for metrics of the same units.
    """
    return {
        split: {
            name: _interval([metric.at(w_n) for w_n in _resampled_weights(metric, resamples, seed)])
            for name, metric in named.items()
        }
        for split, named in metrics.items()
    }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of predictions A minus that of predictions B to the same questions.

    Args:
        value: the difference.
        low, high: its bootstrap interval, with the same resamples for A and B.
        p_value: two-sided, of no difference: twice the share of resamples on the rarer side of
            0, and at least one over their number plus one.
    """

    value: float
    low: float
    high: float
    p_value: float


def differences(
    ours: Metrics, theirs: Metrics, *, resamples: int, seed: int = SEED
) -> dict[str, dict[str, Difference]]:
    """Compare two predictions of the same questions, paired by unit.

    Raises:
        UserError: they are not of the same questions.
    """
    found: dict[str, dict[str, Difference]] = {}
    for split, named in ours.items():
        for name, one in named.items():
            other = theirs.get(split, {}).get(name)
            if other is None or list(other.units) != list(one.units):
                raise UserError(
                    f"{split} {name}: the two predictions answer different questions; want answers"
                    " to the same ones in both"
                )
            resampled = [
                one.at(w_n) - other.at(w_n) for w_n in _resampled_weights(one, resamples, seed)
            ]
            low, high = _interval(resampled)
            rarer = min(sum(each <= 0 for each in resampled), sum(each >= 0 for each in resampled))
            found.setdefault(split, {})[name] = Difference(
                value=one.value - other.value,
                low=low,
                high=high,
                p_value=min(1.0, 2 * (rarer + 1) / (resamples + 1)),
            )
    return found


def _resampled_weights(metric: Metric, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each row counts in each resample of as many units as there are."""
    names, unit_n = np.unique(np.asarray(metric.units, dtype=np.str_), return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        chosen = generator.integers(0, len(names), len(names))
        counts = np.bincount(chosen, minlength=len(names)).astype(np.float64)
        yield counts[unit_n]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
