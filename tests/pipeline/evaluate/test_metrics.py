"""Metrics against scikit-learn and by hand, their bootstrap intervals, and paired comparisons."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from etl.cli import UserError
from pipeline.evaluate.metrics import (
    Metrics,
    auc_metric,
    differences,
    intervals,
    mean_metric,
    sums_metric,
    values,
)


def test_auc_equals_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.random(60) + 0.3 * positive, 1)
    metric = auc_metric(scores.tolist(), positive.tolist(), [str(i) for i in range(60)])
    assert metric.value == pytest.approx(roc_auc_score(positive, scores))
    weights = rng.integers(0, 3, 60).astype(float)
    expected = roc_auc_score(positive, scores, sample_weight=weights)
    assert metric.at(weights) == pytest.approx(expected)


def test_an_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    points = [1.0] * 300 + [0.0] * 100
    metrics: Metrics = {"all": {"accuracy": mean_metric(points, [str(i) for i in range(400)])}}
    low, high = intervals(metrics, resamples=2000)["all"]["accuracy"]
    spread = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == (
        pytest.approx(0.75 - spread, abs=0.006),
        pytest.approx(0.75 + spread, abs=0.006),
    )
    assert intervals(metrics, resamples=50) == intervals(metrics, resamples=50)
    assert intervals(metrics, resamples=50) != intervals(metrics, resamples=50, seed=1)


def test_rows_of_a_unit_are_drawn_together() -> None:
    # Two rows with opposite points in each unit: whichever units are drawn, the mean is 1/2.
    units = [str(i // 2) for i in range(20)]
    metrics: Metrics = {"all": {"mean": mean_metric([0.0, 1.0] * 10, units)}}
    assert intervals(metrics, resamples=20)["all"]["mean"] == (0.5, 0.5)


def test_a_comparison_is_paired() -> None:
    units = [str(i) for i in range(200)]
    points = [float(i % 2) for i in range(200)]
    better = [1.0 if i < 12 else point for i, point in enumerate(points)]
    ours: Metrics = {"all": {"accuracy": mean_metric(better, units)}}
    theirs: Metrics = {"all": {"accuracy": mean_metric(points, units)}}
    one = differences(ours, theirs, resamples=1000)["all"]["accuracy"]
    # 6 of 200 answers differ. Unpaired, the interval would be ±0.1.
    assert one.value == pytest.approx(0.03)
    assert 0 < one.low < 0.03 < one.high < 0.06
    assert one.p_value < 0.05
    same = differences(theirs, theirs, resamples=50)["all"]["accuracy"]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    other: Metrics = {"all": {"accuracy": mean_metric(points[1:], units[1:])}}
    with pytest.raises(UserError, match="all accuracy: the two predictions answer different"):
        differences(ours, other, resamples=10)


def test_a_formula_of_sums() -> None:
    metrics: Metrics = {"a": {"ratio": sums_metric([(1, 2), (2, 2)], "xy", lambda s: s[0] / s[1])}}
    assert values(metrics) == {"a": {"ratio": 0.75}}
