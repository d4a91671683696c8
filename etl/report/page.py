"""The one HTML writer: a page of sections with numbers, charts, tables, and media beside texts.

`page.html.jinja` has the markup and the look, light and dark, down to a phone's width. A page is
one file that fetches nothing; every text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from etl.report.charts import number
from etl.report.media import Embedded
from etl.storage.atomic import atomic_file

Cell = str | int | float | None
_LONG = 40
_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?( ?%| s)?")


@dataclass(frozen=True, kw_only=True)
class Card:
    """The media of a sample, and texts under them.

    Args:
        media: in their order.
        text: a question or a caption.
        answer: of a model.
        details: further texts under the answer, each with a name.
        correct: whether the answer is; None where no answer is the only correct one.
    """

    media: Sequence[Embedded]
    text: str = ""
    answer: str = ""
    details: Sequence[tuple[str, str]] = ()
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; one that has nothing under its heading is left out.

    Args:
        heading: of the section.
        tiles: the most important numbers, each with its name; large.
        facts: names and values, one below the other.
        paragraphs: texts.
        charts: of `etl.report.charts`; side by side where the page is wide.
        columns: the names of a table's columns.
        rows: of the table; a column of numbers is right-aligned, None is an empty cell.
        cards: media with texts.
        note: in small print.
    """

    heading: str
    tiles: Sequence[tuple[str, Cell]] = ()
    facts: Sequence[tuple[str, Cell]] = ()
    paragraphs: Sequence[str] = ()
    charts: Sequence[Markup] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    cards: Sequence[Card] = ()
    note: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything under the heading."""
        parts = (self.tiles, self.facts, self.paragraphs, self.charts, self.rows, self.cards)
        return any(map(len, parts))

    @property
    def styles(self) -> list[str]:
        """The classes of the table's columns: `n` for numbers alone, `long` for long texts."""
        return [_style(cells) for cells in zip(*self.rows, strict=True)]


def write_page(path: Path, *, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write a page as one file, atomically."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    template = environment.get_template("page.html.jinja")
    text = template.render(title=title, subtitle=subtitle, sections=list(filter(None, sections)))
    with atomic_file(path) as stream:
        stream.write(text.encode())


def _style(cells: Sequence[Cell]) -> str:
    texts = [cell for cell in cells if isinstance(cell, str)]
    if all(map(_NUMBER.fullmatch, texts)):
        return "n"
    return "long" if any(len(text) > _LONG for text in texts) else ""


def _cell(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else number(cell)
