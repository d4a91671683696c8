"""Rows of text tables: tab- and comma-separated, with and without a header."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.cli import UserError
from etl.sources.base import BadRecordError


def lines(file: Path) -> Iterator[str]:
    """The non-empty lines of a text file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as stream:
            for line in stream:
                if line.strip():
                    yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error})") from None


def two_columns(line: str, *, last: bool) -> tuple[str, str]:
    """The texts before and after a tab: the line's last one, or its first.

    Raises:
        BadRecordError: there is no tab.
    """
    before, tab, after = line.rpartition("\t") if last else line.partition("\t")
    if not tab:
        raise BadRecordError(f"want two columns with a tab between them, got {line!r:.80}")
    return before, after


def csv_rows(*required: str) -> Callable[[Path], Iterator[dict[str, str]]]:
    """Rows of a comma-separated table with a header, by column name.

    Raises (when read):
        UserError: the header lacks a required column, or the file is not such a table.
    """

    def rows(file: Path) -> Iterator[dict[str, str]]:
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                names = reader.fieldnames or []
                for name in required:
                    if name not in names:
                        raise UserError(f"{file}: no column {name} among {', '.join(names)}")
                for row in reader:
                    # Missing values are None; surplus ones are under the key None.
                    yield {name: value or "" for name, value in row.items() if name is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not a comma-separated table in UTF-8 ({error})") from None

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
