"""A self-contained HTML page of tables, charts, text, and questions with answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from etl.storage.atomic import atomic_file

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Text:
    """Paragraphs under a heading."""

    heading: str
    paragraphs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a heading; numbers are right-aligned, None is an empty cell."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Charts:
    """SVG elements from `pipeline.run_folder.charts`, side by side where the page is wide."""

    heading: str
    charts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question about an image: the model's answer, and whether it is correct.

    Args:
        image: the bytes of a PNG, JPEG or WebP file.
        question, answer, truth: texts.
        correct: None where no answer is the only correct one, as with a caption.
    """

    image: bytes
    question: str
    answer: str
    truth: str
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images with questions and answers."""

    heading: str
    answers: Sequence[Answer]


Section = Text | Table | Charts | Gallery


def write_report(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the sections as one file, atomically."""
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=escape(title), style=_STYLE, body=body)
    with atomic_file(path) as stream:
        stream.write(page.encode())


def _section(section: Section) -> str:
    match section:
        case Text():
            body = "\n".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
        case Table():
            body = _table(section)
        case Charts():
            figures = "\n".join(f"<figure>{chart}</figure>" for chart in section.charts)
            body = f'<div class="charts">{figures}</div>'
        case Gallery():
            cards = "\n".join(_card(answer) for answer in section.answers)
            body = f'<div class="gallery">{cards}</div>'
    return f"<section>\n<h2>{escape(section.heading)}</h2>\n{body}\n</section>"


def _table(table: Table) -> str:
    numeric = [
        all(not isinstance(row[column], str) for row in table.rows)
        for column in range(len(table.columns))
    ]
    lines = [_row("th", table.columns, numeric)] if any(table.columns) else []
    lines += [_row("td", [_cell(cell) for cell in row], numeric) for row in table.rows]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, cells: Sequence[str], numeric: Sequence[bool]) -> str:
    kinds = [' class="n"' if number else "" for number in numeric]
    inner = (f"<{tag}{kind}>{escape(c)}</{tag}>" for c, kind in zip(cells, kinds, strict=True))
    return f"<tr>{''.join(inner)}</tr>"


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case int():
            return f"{cell:,}"
        case float():
            return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return cell


def _card(answer: Answer) -> str:
    image = base64.b64encode(answer.image).decode()
    style = {True: "correct", False: "wrong", None: "none"}[answer.correct]
    mark = {True: "✓ ", False: "✗ ", None: ""}[answer.correct]
    truth = "" if answer.correct else f'<p class="truth">{escape(answer.truth)}</p>'
    return (
        f'<figure class="card {style}">'
        f'<img alt="" src="data:{_mime(answer.image)};base64,{image}">'
        f"<figcaption><p>{escape(answer.question)}</p>"
        f'<p class="answer">{mark}{escape(answer.answer)}</p>{truth}</figcaption></figure>'
    )


def _mime(image: bytes) -> str:
    """Return the media type of an image by its first bytes.

    Raises:
        ValueError: the format is not one that every browser shows.
    """
    if image.startswith(b"\x89PNG"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError(f"want a PNG, JPEG or WebP image; this one starts with {image[:8]!r}")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --line: #dfe3e8;
  --page: #fff; --card: #f7f8fa; --correct: #17794f; --wrong: #c0392b }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #98a4af;
  --line: #353c44; --page: #16191d; --card: #1f2429; --correct: #4cc38a; --wrong: #ff7b6b } }
* { box-sizing: border-box }
body { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 1.5rem }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem }
p { max-width: 44rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .32rem 1.4rem .32rem 0; text-align: left; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500 }
.n { text-align: right }
.wide { overflow-x: auto }
figure { margin: 0 }
.charts { display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)) }
.charts svg { display: block; width: 100%; max-width: 44rem; height: auto;
  stroke-linejoin: round; stroke-linecap: butt }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
.card { padding: .75rem; background: var(--card); border-radius: 6px;
  border-top: 3px solid var(--line) }
.card img { display: block; width: 100%; border-radius: 3px; image-rendering: pixelated }
.card p { margin: .4rem 0 0; overflow-wrap: anywhere; font-size: .87rem; line-height: 1.4 }
.card .answer { font-weight: 600 }
.card .truth { color: var(--soft) }
.card .truth::before { content: "truth: " }
.correct { border-top-color: var(--correct) } .correct .answer { color: var(--correct) }
.wrong { border-top-color: var(--wrong) } .wrong .answer { color: var(--wrong) }
"""
