"""Charts as figures with inline SVG: lines, bars and histograms, for every page.

Equal numbers give equal bytes. Lines and bars have classes, to which `page.html.jinja` gives the
colours of the light or the dark page; texts remain texts. The mark under the pointer says its
numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_WIDTH = 400.0  # of a viewBox: not much more than a phone has, so texts stay legible there
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 384.0, 8.0, 168.0
_MAX_POINTS = 600  # more points than pixels would only make the file larger
_MAX_BANDS = 60
_SIZES = ((1e6, "M"), (1e3, "k"))
_COLOURS = 6
_ROW = 34.0

Points = Sequence[tuple[float, float]]
Floats = NDArray[np.float64]

_FIGURE = Markup(
    '<figure class="chart"><figcaption>{title} <small>{note}</small>{keys}</figcaption>'
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
    "<title>{title}</title>{body}</svg></figure>"
)
_KEY = Markup('<span class="key {style}">{name}</span>')
_TEXT = Markup('<text class="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>')
_PATH = Markup('<path class="{style}" d="{d}"/>')
_RECT = Markup(
    '<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
    "<title>{title}</title></rect>"
)


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    unit: str = "",
    smooth: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Draw one line per series over the steps of a run.

    Args:
        title: of the chart; also its label for screen readers.
        series: name → (step, value) in order of steps; non-finite values leave a gap.
        unit: of the values.
        smooth: whether to draw a bold running mean over the faint values.
        from_zero: whether the vertical axis starts at zero.
    """
    steps = sorted({x for points in series.values() for x, _ in points}) or [0.0, 1.0]
    values = [y for points in series.values() for _, y in points if math.isfinite(y)] or [0.0, 1.0]
    ticks = _ticks(min([0.0, *values]) if from_zero else min(values), max(values))
    across = _scale(steps[0], steps[-1], _LEFT, _RIGHT)
    upwards = _scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    body = [*_grid(ticks, upwards), *_steps(steps, across)]
    keys = []
    for index, (name, points) in enumerate(series.items()):
        style = f"s{index % _COLOURS}" + (" dashed" if index >= _COLOURS else "")
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        smoothed = smooth and len(x) > 2
        for kind, curve in {" faint": y, "": running_mean(y)}.items() if smoothed else [("", y)]:
            thin_x, thin_y = _thin(x, curve)
            path = _path(across(thin_x), upwards(thin_y))
            body.append(_PATH.format(style=f"line {style}{kind}", d=path))
        keys.append(_KEY.format(style=style, name=name))
    body += _bands(series, steps, across)
    return _figure(title, unit, body, _BOTTOM + 36, keys if len(keys) > 1 else ())


def bar_chart(title: str, rows: Mapping[str, float], *, notes: Sequence[str] = ()) -> Markup:
    """Draw one horizontal bar per name, in the order given, with its value and a note above it."""
    most = max(rows.values(), default=0) or 1
    body = []
    for index, (name, value) in enumerate(rows.items()):
        text = f"{number(value)} · {notes[index]}" if notes else number(value)
        label = name if len(name) <= 44 else f"{name[:43]}…"
        y, width = index * _ROW, max(2.0, _WIDTH * value / most) if value else 0.0
        body.append(_TEXT.format(anchor="", x=0, y=y + 11, text=label))
        body.append(_TEXT.format(anchor="end", x=_WIDTH, y=y + 11, text=text))
        body.append(_bar(0, y + 16, width, 9, f"{name}: {text}"))
    return _figure(title, "", body, len(rows) * _ROW)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], *, note: str) -> Markup:
    """Draw a histogram with bins of equal width on the page, labelled with its outer edges."""
    height, step, most = 96.0, _WIDTH / len(counts), max(counts) or 1
    body = [_PATH.format(style="grid", d=f"M0 {height}H{_WIDTH:g}")]
    for index, count in enumerate(counts):
        tall = max(1.0, height * count / most) if count else 0.0
        title_of_bin = f"{number(edges[index])} to {number(edges[index + 1])}: {count:,}"
        body.append(_bar(index * step + 0.75, height - tall, step - 1.5, tall, title_of_bin))
    body.append(_TEXT.format(anchor="", x=0, y=height + 15, text=number(edges[0])))
    body.append(_TEXT.format(anchor="end", x=_WIDTH, y=height + 15, text=number(edges[-1])))
    return _figure(title, note, body, height + 20)


def standalone(chart: Markup) -> str:
    """Return the drawing of a chart as the text of an SVG file, without its title and keys."""
    opening, body = re.findall(r"(<svg[^>]*>)(.*</svg>)", chart, re.DOTALL)[0]
    style = Path(__file__).with_name("charts.css").read_text()
    return f"{opening}<style>{style} svg {{ font-family: sans-serif }}</style>{body}"


def number(value: float) -> str:
    """Return a number for display: four digits, or all of an integer, with commas."""
    whole = abs(value) >= 1000 or float(value).is_integer()
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def running_mean(values: Floats) -> Floats:
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
    in_window = counts[last] - counts[first]
    return np.where(in_window, (sums[last] - sums[first]) / np.maximum(in_window, 1), np.nan)


def _figure(
    title: str, note: str, body: Iterable[Markup], height: float, keys: Iterable[Markup] = ()
) -> Markup:
    parts = {"keys": Markup().join(keys), "body": Markup().join(body)}
    return _FIGURE.format(title=title, note=note, width=_WIDTH, height=height, **parts)


def _bar(x: float, y: float, width: float, height: float, title: str) -> Markup:
    return _RECT.format(style="bar", x=x, y=y, width=width, height=height, title=title)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[Floats], Floats]:
    """Return a function from the values of an axis to positions."""
    return lambda values: start + (values - low) / (high - low or 1.0) * (end - start)


def _ticks(low: float, high: float, *, whole: bool = False) -> Floats:
    """Return multiples of 1, 2 or 5 · 10ⁿ, from at or below `low` to at or above `high`."""
    least = (high - low or abs(high) or 1.0) / 4.5
    power = 10.0 ** math.floor(math.log10(least))
    step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= least)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return step * np.arange(first, max(first + 1, last) + 1, dtype=float)


def _grid(ticks: Floats, upwards: Callable[[Floats], Floats]) -> Iterable[Markup]:
    for tick, y in zip(ticks, upwards(ticks), strict=True):
        yield _PATH.format(style="grid", d=f"M{_LEFT:g} {y:.1f}H{_RIGHT:g}")
        yield _TEXT.format(anchor="end", x=_LEFT - 6, y=y + 4, text=_tick_label(tick))


def _steps(steps: Sequence[float], across: Callable[[Floats], Floats]) -> Iterable[Markup]:
    ticks = _ticks(steps[0], steps[-1], whole=True)
    ticks = ticks[(ticks >= steps[0]) & (ticks <= steps[-1])]
    for tick, x in zip(ticks, across(ticks), strict=True):
        yield _TEXT.format(anchor="middle", x=x, y=_BOTTOM + 15, text=_tick_label(tick))
    yield _TEXT.format(anchor="middle", x=(_LEFT + _RIGHT) / 2, y=_BOTTOM + 31, text="step")


def _tick_label(value: float) -> str:
    size, letter = next((one for one in _SIZES if abs(value) >= 10 * one[0]), (1.0, ""))
    return f"{value / size:,.6g}{letter}"


def _path(xs: Floats, ys: Floats) -> str:
    """Return a path's data, broken at values that are not finite; a value by itself is a dot."""
    parts, joined = [], False
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(y):
            parts.append(f"L{x:.1f} {y:.1f}" if joined else f"M{x:.1f} {y:.1f}h0")
        joined = math.isfinite(y)
    return "".join(parts)


def _bands(
    series: Mapping[str, Points], steps: Sequence[float], across: Callable[[Floats], Floats]
) -> Iterable[Markup]:
    """Return invisible bands over the plot, each of which says the values of a step."""
    chosen = steps[:: -(-len(steps) // _MAX_BANDS)]
    centres = across(np.array(chosen, dtype=float))
    edges = [_LEFT, *(centres[:-1] + centres[1:]) / 2, _RIGHT]
    values = {name: dict(points) for name, points in series.items()}
    for step, left, right in zip(chosen, edges, edges[1:], strict=False):
        entries = ((name, found.get(step, math.nan)) for name, found in values.items())
        texts = [f"{name}: {number(value)}" for name, value in entries if math.isfinite(value)]
        title = "\n".join([f"step {number(step)}", *texts])
        box = {"x": left, "y": _TOP, "width": right - left, "height": _BOTTOM - _TOP}
        yield _RECT.format(style="band", title=title, **box)


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Average neighbouring points so that at most `_MAX_POINTS` remain."""
    bins = -(-len(x) // _MAX_POINTS)
    if bins <= 1:
        return x, y
    starts = np.arange(0, len(x), bins)
    widths = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / widths, np.add.reduceat(y, starts) / widths
