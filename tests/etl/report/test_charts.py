"""Charts: valid SVG for any numbers, with their texts as texts."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from etl.report.charts import bar_chart, histogram, line_chart, running_mean

SVG = "{http://www.w3.org/2000/svg}"


def texts(chart: str, tag: str = "text") -> list[str | None]:
    return [element.text for element in ElementTree.fromstring(chart).iter(SVG + tag)]


def test_charts_are_deterministic_and_have_no_ids():
    points = {"text": [(step, 1 / step) for step in range(1, 50)]}
    first, again = (line_chart("a", points, smooth=True) for _ in range(2))
    assert first == again
    # They would occur in every chart of a page.
    assert not re.search(r"\bid=", first)


def test_charts_keep_text_as_text_and_leave_colours_to_the_page():
    chart = bar_chart("Dropped", {"dead link": 1200, "too small": 7}, notes=["99.4%", "0.6%"])
    assert texts(chart) == ["dead link", "1,200 · 99.4%", "too small", "7 · 0.6%"]
    assert texts(chart, "title")[0] == "Dropped"
    lines = line_chart("t", {"a": [(1, 1.0), (2, 2.0)], "b": [(1, 3.0)]}, unit="seconds")
    for drawn in (chart, lines):
        [svg] = ElementTree.fromstring(drawn).iter(SVG + "svg")
        assert svg.attrib.keys() == {"viewBox", "role"}
        assert "#" not in drawn
        assert "font-family" not in drawn


def test_the_pointer_is_told_the_numbers_of_a_step():
    chart = line_chart("t", {"a": [(1, 0.5), (2, 0.25)], "b": [(2, float("nan")), (3, 7000.0)]})
    assert texts(chart, "title") == ["t", "step 1\na: 0.5", "step 2\na: 0.25", "step 3\nb: 7,000"]


def test_axes_have_round_labels_that_enclose_the_values():
    labels = texts(line_chart("t", {"a": [(1, 0.13), (94, 0.87)]}))
    assert labels == ["0", "0.2", "0.4", "0.6", "0.8", "1", "50", "step"]
    labels = texts(line_chart("t", {"a": [(3, 1500.0), (5, 1500.0)]}, from_zero=True))
    assert labels == ["0", "500", "1,000", "1,500", "3", "4", "5", "step"]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5000])
def test_lines_of_any_length_can_be_drawn(length):
    chart = line_chart("t", {"a": [(x, 1.0) for x in range(length)]}, smooth=True, from_zero=True)
    ElementTree.fromstring(chart)
    assert len(chart) < 60_000


def test_a_value_that_is_not_finite_leaves_a_gap():
    values = [1.0, float("nan"), 2.0, 3.0, float("inf"), 1.0]
    chart = line_chart("t", {"a": list(enumerate(values))})
    assert "nan" not in chart
    assert "inf" not in chart
    [path] = re.findall(r'class="line s0" d="([^"]+)"', chart)
    assert re.sub(r"[^MLh]", "", path) == "MhMhLMh"


def test_more_series_than_colours_are_dashed():
    chart = line_chart("t", {str(name): [(1, name), (2, name)] for name in range(7)})
    assert chart.count('class="line s0"') == chart.count('class="line s0 dashed"') == 1
    assert chart.count('class="key') == 7


def test_charts_of_no_rows_and_of_zeros():
    assert texts(bar_chart("t", {})) == []
    assert texts(bar_chart("t", {"nothing": 0})) == ["nothing", "0"]
    assert "<rect" in bar_chart("t", {"nothing": 0})
    assert histogram("t", [0, 1, 2], [0, 0], note="").count("<rect") == 2


def test_the_running_mean_follows_a_slope_and_skips_non_finite_values():
    slope = np.arange(100.0)
    assert np.allclose(running_mean(slope), slope)
    slope[50] = np.nan
    assert np.isfinite(running_mean(slope)).all()
    assert np.isnan(running_mean(np.full(3, np.nan))).all()
