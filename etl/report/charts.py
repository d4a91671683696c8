"""Bar charts and histograms as inline SVG, deterministic: equal numbers give equal bytes."""

from __future__ import annotations

import html
from collections.abc import Sequence

_WIDTH = 660
_ROW = 26
_LABEL = 210


def bars(rows: Sequence[tuple[str, float]], *, notes: Sequence[str] = ()) -> str:
    """Horizontal bars with labels and numbers; `notes` adds a text to each."""
    most = max((value for _, value in rows), default=0) or 1
    bar_width = _WIDTH - _LABEL - 170
    parts = []
    for index, (label, value) in enumerate(rows):
        middle = index * _ROW + _ROW / 2
        width = max(1.5, bar_width * value / most)
        note = f" · {notes[index]}" if notes else ""
        parts.append(
            f"<text class='label' x='{_LABEL - 10}' y='{middle:g}'>{_cut(label)}</text>"
            f"<rect x='{_LABEL}' y='{middle - 8:g}' width='{width:.1f}' height='16' rx='3'/>"
            f"<text x='{_LABEL + width + 8:.1f}' y='{middle:g}'>{value:,.10g}{_cut(note)}</text>"
        )
    return _svg(_WIDTH, len(rows) * _ROW, parts)


def histogram(edges: Sequence[float], counts: Sequence[int]) -> str:
    """A histogram with bins of equal width on the page, labelled with the outer edges."""
    width, height = 300, 96
    step, most = width / len(counts), max(counts) or 1
    parts = []
    for index, count in enumerate(counts):
        tall = max(1.0 if count else 0.0, height * count / most)
        title = f"{number(edges[index])} to {number(edges[index + 1])}: {count:,}"
        parts.append(
            f"<rect x='{index * step + 0.75:.2f}' y='{height - tall:.1f}'"
            f" width='{step - 1.5:.2f}' height='{tall:.1f}'><title>{title}</title></rect>"
        )
    parts.append(f"<path d='M0 {height + 0.5}H{width}'/>")
    parts.append(f"<text x='0' y='{height + 13}'>{number(edges[0])}</text>")
    parts.append(f"<text class='label' x='{width}' y='{height + 13}'>{number(edges[-1])}</text>")
    return _svg(width, height + 22, parts)


def number(value: float) -> str:
    """A number for display: four significant digits, thousands separated by commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f"width='{width:g}' height='{height:g}' viewBox='0 0 {width:g} {height:g}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' role='img' {size}>{''.join(parts)}</svg>"


def _cut(text: str) -> str:
    return html.escape(text if len(text) <= 30 else f"{text[:29]}…")
