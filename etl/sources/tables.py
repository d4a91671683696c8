"""Rows of text tables: tab- and comma-separated, with and without a header."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.cli import UserError
from etl.sources.base import BadRecordError
from etl.sources.files import DAMAGE, BadRow, open_file, text_lines


def two_columns(line: str, *, last: bool) -> tuple[str, str]:
    """The texts before and after a tab: the line's last one, or its first.

    Raises:
        BadRecordError: there is no tab.
    """
    before, tab, after = line.rpartition("\t") if last else line.partition("\t")
    if not tab:
        raise BadRecordError(f"want two columns with a tab between them, got {line!r:.80}")
    return before, after


def separated_values(file: Path) -> Iterator[list[str] | BadRow]:
    """Rows of a table whose columns are separated by the comma or tab that its first line has.

    Quotes are those of RFC 4180, for tabs too. Bytes that are not UTF-8 become surrogates, which
    spoil one record only.

    Raises:
        UserError: the file is damaged.
    """
    first = next(text_lines(file), "")
    csv.field_size_limit(sys.maxsize)  # one long value must not end a job
    try:
        with io.TextIOWrapper(
            open_file(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as stream:
            reader = csv.reader(stream, delimiter="\t" if "\t" in first else ",")
            while True:
                try:
                    row: list[str] | BadRow = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    row = BadRow(f"line {reader.line_num}: {error}")
                if row:
                    yield row
    except DAMAGE as error:
        raise UserError(f"{file}: damaged ({error})") from None


def named_values(file: Path) -> Iterator[dict[str, str] | BadRow]:
    """Rows of a table with a header, by column name; missing values are empty.

    Raises:
        UserError: the file is damaged, or two of its columns have the same name.
    """
    names: list[str] | None = None
    for row in separated_values(file):
        if isinstance(row, BadRow):
            yield row
        elif names is None:
            names = row
            twice = [name for name in names if name and names.count(name) > 1]
            if twice:
                raise UserError(f"{file}: two columns are called {twice[0]!r}; rename one")
        elif any(row[len(names) :]):
            yield BadRow(f"{len(row)} values in {len(names)} columns: {row[len(names)]!r:.40} …")
        else:
            yield dict(zip(names, [*row, *[""] * len(names)], strict=False))


def csv_rows(*required: str) -> Callable[[Path], Iterator[dict[str, str] | BadRow]]:
    """Rows of a comma-separated table with a header, by column name.

    Raises (when read):
        UserError: the header lacks a required column, or the file is not such a table.
    """

    def rows(file: Path) -> Iterator[dict[str, str] | BadRow]:
        header = next(separated_values(file), [])
        names = header if isinstance(header, list) else []
        for name in required:
            if name not in names:
                has = ", ".join(names)
                raise UserError(f"{file}: no column {name} among {has:.200}")
        yield from named_values(file)

    return rows


def number(text: str, name: str) -> float | None:
    """A number in a table, None if the field is empty.

    Raises:
        BadRecordError: it is not a number.
    """
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise BadRecordError(f"{name} is {text!r:.40}, want a number") from None
