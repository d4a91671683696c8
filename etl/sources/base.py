"""What all readers of corpora share: the candidates' shape, and records.

A candidate table has `CANDIDATES`' columns and whichever of `OPTIONAL` and `score.NAME` (float)
its corpus publishes. Without a column `media`, a row has one image, at `url`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from etl.cli import UserError
from etl.filters.records import MEDIA
from etl.filters.urls import shown
from etl.sources.files import input_files
from etl.storage.schema import PLACEHOLDERS, Turn

TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
CANDIDATES = pa.schema(
    [
        ("row", pa.int64()),  # the row's number in the input
        ("id", pa.string()),  # of the row's content, so that it outlives another order of the input
        ("url", pa.string()),  # of its first medium, if it has any
        ("turns", TURNS),
        ("lineage", pa.string()),  # a JSON object of strings
    ]
)
OPTIONAL = pa.schema(
    [
        ("media", MEDIA),  # one per placeholder, in order
        ("rejected", TURNS),
        ("feedback", TURNS),
        ("caption", pa.string()),  # what the caption steps judge
        ("fault", pa.string()),  # why the row cannot be used, if it cannot
    ]
)


class Source(Protocol):
    """A corpus' list of records."""

    @property
    def files(self) -> Sequence[Path]:
        """The files it is read from; their bytes are its identity."""

    def read(self, rows: int) -> Iterator[pa.Table]:
        """Candidate tables of `rows` rows each, in the input's order; the last may be shorter.

        A reader that brings rows together which share a medium gives longer tables, and rows where
        the first of their medium stood; the same input gives the same tables.

        Raises:
            UserError: the list is damaged or does not have the corpus' shape.
        """


class BadRecordError(UserError):
    """One record is not of its format's shape."""


@dataclass(frozen=True, kw_only=True)
class Ref:
    """Where a medium's bytes are.

    `url` is an http(s) or data URL, or the name of a file among the job's `--media`. `start` and
    `length` (seconds) name a part of it.
    """

    kind: str
    url: str
    start: float | None = None
    length: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a corpus, before its media are there; the fields are those of a `Sample`.

    `caption` is the text of a pair, which the caption steps judge.
    """

    turns: tuple[Turn, ...]
    media: tuple[Ref, ...] = ()
    rejected: tuple[Turn, ...] = ()
    feedback: tuple[Turn, ...] = ()
    caption: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)


def pair(kind: str, url: str, caption: str, **lineage: str) -> Record:
    """A medium and its caption: the user shows, the assistant tells."""
    turns = (Turn(role="user", text=PLACEHOLDERS[kind]), Turn(role="assistant", text=caption))
    media = (Ref(kind=kind, url=url),)
    return Record(turns=turns, media=media, caption=caption, lineage=lineage)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a corpus is published.

    Args:
        suffixes: of its files' names.
        rows: from a file to what it holds, one after the other.
        parse: from one of these to the records in it; BadRecordError if it cannot.
        scores: names of the scores that records have.
        together: bring records that share their first medium together, so that it is fetched
            once; needs all of them in memory at once.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterable[Any]]
    parse: Callable[[Any], Iterable[Record]]
    scores: tuple[str, ...] = ()
    together: bool = False


class Records:
    """Reads a corpus by its format.

    A file whose first record is not of the format's shape is the user's mistake; a later one that
    is not becomes a row that has nothing but a `fault`.

    Args:
        name: of the job; ids begin with it.
        path: a file, or a folder of files.
        how: the corpus' format.

    Raises:
        UserError: nothing is there, or it is empty.
    """

    def __init__(self, name: str, path: Path, how: Format) -> None:
        self.files = input_files(path, *how.suffixes)
        self._name = name
        self._format = how

    def read(self, rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        numbered = enumerate(self._records())
        groups = _by_medium(numbered) if self._format.together else ([one] for one in numbered)
        pending: list[tuple[int, Record | str]] = []
        for group in groups:
            pending += group
            if len(pending) >= rows:
                yield self._table(pending)
                pending = []
        if pending:
            yield self._table(pending)

    def _records(self) -> Iterator[Record | str]:
        for file in self.files:
            for number, row in enumerate(self._format.rows(file)):
                try:
                    yield from self._format.parse(row)
                except BadRecordError as error:
                    if number == 0:
                        raise UserError(f"{file}: record 0: {error}") from None
                    yield str(error)

    def _table(self, numbered: Sequence[tuple[int, Record | str]]) -> pa.Table:
        records = [
            found if isinstance(found, Record) else Record(turns=()) for _, found in numbered
        ]
        columns: dict[str, Any] = {
            "row": [row for row, _ in numbered],
            "id": [record_id(self._name, record) for record in records],
            "url": [shown(record.media[0].url) if record.media else None for record in records],
            "turns": [list(map(vars, record.turns)) for record in records],
            "lineage": [json.dumps(dict(record.lineage)) for record in records],
            "media": [list(map(vars, record.media)) for record in records],
            "rejected": [list(map(vars, record.rejected)) for record in records],
            "feedback": [list(map(vars, record.feedback)) for record in records],
            "caption": [record.caption for record in records],
            "fault": [found if isinstance(found, str) else None for _, found in numbered],
        }
        fields = [*CANDIDATES, *OPTIONAL]
        for name in self._format.scores:
            columns[f"score.{name}"] = [record.scores.get(name) for record in records]
            fields.append(pa.field(f"score.{name}", pa.float32()))
        return pa.table(columns, schema=pa.schema(fields))


def _by_medium(
    numbered: Iterable[tuple[int, Record | str]],
) -> Iterable[list[tuple[int, Record | str]]]:
    """Group records by their first medium; a group stands where its first record stood."""
    groups: dict[Any, list[tuple[int, Record | str]]] = {}
    for row, record in numbered:
        shared = isinstance(record, Record) and record.media
        groups.setdefault(record.media[0] if shared else row, []).append((row, record))  # type: ignore[union-attr]
    return groups.values()


def record_id(source: str, record: Record) -> str:
    """Id from content: where its media are, and its texts."""
    where: Any = [list(vars(ref).values()) for ref in record.media]
    if len(record.media) == 1 and record.media[0].start is None:
        where = record.media[0].url
    parts = [where or None, json.dumps(list(map(vars, record.turns)))]
    if record.rejected or record.feedback:
        parts.append([list(map(vars, turns)) for turns in (record.rejected, record.feedback)])
    return content_id(source, parts)


def content_id(source: str, parts: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    """The source and 20 hex digits over the parts."""
    return f"{source}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]}"


def take(record: Any, key: str, kind: type | tuple[type, ...] = object) -> Any:  # noqa: ANN401
    """A field of a record.

    Raises:
        BadRecordError: it is not there or of another type; with the name that may be meant.
    """
    if not isinstance(record, dict):
        raise BadRecordError(f"want an object with {key!r}")
    if key not in record:
        close = difflib.get_close_matches(key, record, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BadRecordError(f"no field {key!r} among {sorted(record)}{hint}")
    value = record[key]
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(one.__name__ for one in kinds)
        raise BadRecordError(f"{key} is {value!r:.60}, want {names}")
    return value


def texts(record: Mapping[str, Any], *known: str) -> dict[str, str]:
    """The string fields of a record except the known ones, for its lineage."""
    return {k: v for k, v in record.items() if k not in known and isinstance(v, str)}
