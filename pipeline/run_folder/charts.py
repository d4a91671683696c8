"""Charts as inline SVG, deterministic to the byte, for light and dark pages.

Text remains text and inherits the page's font and colour; only lines and bars have their own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

COLOURS = ("#3b82d6", "#e07b39", "#2a9d78", "#a968c9", "#c9a227", "#d1567a")
"""Each with a contrast of at least 3:1 on both the light and the dark page."""

_INK = "#010203"
"""Placeholder for `currentColor`, which matplotlib does not support; replaced in the SVG."""

_STYLE: dict[Any, Any] = {  # matplotlib types the keys as literals
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.color": _INK,
    "text.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

_MAX_POINTS = 600
"""More points than pixels would only make the file larger."""

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str = "step",
    y_label: str = "",
    smooth: bool = False,
    from_zero: bool = False,
) -> str:
    """Draw one line per series; with `smooth`, a bold running mean over the faint raw values.

    Args:
        title: of the chart; also its label for screen readers.
        series: name → (x, y) in order of x; non-finite values leave a gap.
        x_label: of the axis, with the unit.
        y_label: likewise.
        smooth: whether to draw a running mean.
        from_zero: whether the vertical axis starts at zero.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(title, 2.6)
        for (name, points), colour in zip(series.items(), cycle(COLOURS), strict=False):
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            if smooth and len(x) > 2:
                axes.plot(*_thin(x, y), color=colour, linewidth=0.8, alpha=0.35)
                axes.plot(*_thin(x, running_mean(y)), color=colour, linewidth=1.8, label=name)
            else:
                marker = "o" if len(x) == 1 else ""
                axes.plot(*_thin(x, y), color=colour, linewidth=1.6, marker=marker, label=name)
        axes.set(xlabel=x_label, ylabel=y_label)
        if from_zero:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if len(series) > 1:
            axes.legend()
        return _svg(figure, title)


def bar_chart(title: str, counts: Mapping[str, float], *, x_label: str = "") -> str:
    """Draw one horizontal bar per name, in the order given, with its value at its end."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(title, 0.7 + 0.3 * max(1, len(counts)))
        names, values = list(counts), list(counts.values())
        bars = axes.barh(range(len(names)), values, color=COLOURS[0], height=0.68)
        axes.bar_label(bars, labels=[_number(value) for value in values], padding=4)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=_whole(values)))
        axes.set_xlabel(x_label)
        return _svg(figure, title)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a running mean over a 20th of the values; non-finite values are left out.

    The window is centred, so that the mean does not lag, and narrows towards both ends.
    """
    count = len(values)
    index = np.arange(count)
    half = np.minimum(max(1, count // 40), np.minimum(index, count - 1 - index))
    finite = np.isfinite(values)
    sums = np.append(0.0, np.cumsum(np.where(finite, values, 0.0)))
    counts = np.append(0, np.cumsum(finite))
    first, last = index - half, index + half + 1
    number = counts[last] - counts[first]
    return np.where(number, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _figure(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height + 0.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def _thin(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average neighbouring points so that at most `_MAX_POINTS` remain."""
    bins = -(-len(x) // _MAX_POINTS)
    if bins <= 1:
        return x, y
    starts = np.arange(0, len(x), bins)
    widths = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / widths, np.add.reduceat(y, starts) / widths


def _whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def _svg(figure: Figure, title: str) -> str:
    """Return the `<svg>` element alone: no prolog, date, fixed size or font."""
    stream = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The salt makes ids deterministic, and different from those of other charts on the page.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=empty)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = text.replace(_INK, "currentColor")
    # These ids would occur in every chart of a page.
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = re.sub(r" font-family: [^;]+;", "", text)
    # It would apply to the whole page; `pipeline.run_folder.page` styles charts alone.
    text = re.sub(r"<style.*?</style>", "", text)
    label = escape(title, quote=True)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{label}">',
        text,
        count=1,
    )
