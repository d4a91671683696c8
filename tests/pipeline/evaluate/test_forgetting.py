"""Average accuracy, backward transfer and forgetting, against values computed by hand."""

import pytest

from pipeline.evaluate.forgetting import Forgetting, measure_forgetting


def test_three_tasks_by_hand() -> None:
    accuracies = [[0.9, 0.1, 0.2], [0.95, 0.8, 0.2], [0.55, 0.6, 0.7]]
    found = measure_forgetting(accuracies)
    assert found.accuracy == pytest.approx((0.55 + 0.6 + 0.7) / 3)
    assert found.backward_transfer == pytest.approx(((0.55 - 0.9) + (0.6 - 0.8)) / 2)
    assert found.forgetting == pytest.approx(((0.95 - 0.55) + (0.8 - 0.6)) / 2)


def test_what_improves_later_is_no_forgetting() -> None:
    found = measure_forgetting([[0.5, 0.0], [0.75, 1.0]])
    assert found == Forgetting(accuracy=0.875, backward_transfer=0.25, forgetting=-0.25)


@pytest.mark.parametrize("accuracies", [[[1.0]], [[1.0, 0.5], [0.5]], []])
def test_other_shapes_are_refused(accuracies: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="want two or more in a square matrix"):
        measure_forgetting(accuracies)
