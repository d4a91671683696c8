"""What all readers of corpora share: the candidates' schema, records, and formats.

A candidate table has the columns of `CANDIDATES` and any of `OPTIONAL` and `score.NAME` (float)
that its corpus publishes. Without a column `media`, a row has one image, at `url`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from etl.cli import UserError
from etl.filters.records import MEDIA
from etl.filters.urls import display_url
from etl.media.embedded import in_file, is_unnamed
from etl.sources.files import BadRow, input_files, input_root
from etl.storage.schema import PLACEHOLDERS, ROLES, Turn

TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
CANDIDATES = pa.schema(
    [
        ("row", pa.int64()),  # number of the row in the input
        ("id", pa.string()),  # from the row's content, so reordering the input does not change it
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
        ("caption", pa.string()),  # what the caption filters check
        ("parse_error", pa.string()),  # why the record could not be parsed, if so
    ]
)

Identity = Literal["medium", "record"]
"""When two samples are duplicates: if their media are the same, or their media and their text."""


_MAX_BAD_ROWS = 100
"""So many rows at the start of a file, none of which can be parsed, mean another format."""


class Source(Protocol):
    """A corpus as a list of records."""

    @property
    def files(self) -> Sequence[Path]:
        """The input files; their bytes identify the input."""

    def read(self, rows: int) -> Iterator[pa.Table]:
        """Yield candidate tables of `rows` rows each, in input order; the last may be shorter.

        A reader that groups rows by medium may yield longer tables, with each group at the position
        of its first row; the same input gives the same tables.

        Raises:
            UserError: the list is damaged or not of the corpus' format.
        """


class BadRecordError(UserError):
    """One record does not match its format."""


@dataclass(frozen=True, kw_only=True)
class MediaRef:
    """The location of a medium's bytes.

    `url` is an http(s) or data URL, or the name of a file in the job's `--media`. `start` and
    `length` (seconds) select a segment of it.
    """

    kind: str
    url: str
    start: float | None = None
    length: float | None = None


Task = Literal[
    "caption", "vqa", "options", "refer", "identify", "grounding", "detection", "dialogue"
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user turn asks, before it is put into words (`etl.sources.phrasings`).

    Args:
        task: a caption, a short answer, one of several options, where something is, what is
            somewhere, a description with boxes, the boxes of a phrase, or a question with regions
            in it.
        text: the question, expression or region; phrases of boxes are between `<ph_st>` and
            `<ph_ed>`.
        answer: the answer with such marks, if it has boxes of phrases; else None.
        options: of which one is the answer.
        key: what chooses the words, where `text` is the same for all; else empty.
    """

    task: Task
    text: str = ""
    answer: str | None = None
    options: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a corpus, before its media are fetched; the fields are those of a `Sample`.

    `caption` is the text of a pair, which the caption filters check. `asked` says for each user
    turn what it asks, where the parser knows; it is not kept.
    """

    turns: tuple[Turn, ...]
    media: tuple[MediaRef, ...] = ()
    rejected: tuple[Turn, ...] = ()
    feedback: tuple[Turn, ...] = ()
    caption: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[Asked, ...] = ()


def pair(kind: str, url: str, caption: str, **lineage: str) -> Record:
    """A record of a medium (user turn) and its caption (assistant turn)."""
    turns = (Turn(role="user", text=PLACEHOLDERS[kind]), Turn(role="assistant", text=caption))
    media = (MediaRef(kind=kind, url=url),)
    return Record(turns=turns, media=media, caption=caption, lineage=lineage)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A published format: how to read a corpus' files.

    Args:
        suffixes: of its files' names.
        rows: yields the rows of a file, in whatever form `parse` takes, or a `BadRow`.
        parse: yields the records of a row; raises BadRecordError if it cannot be parsed. Any other
            exception but a UserError means the same.
        scores: names of the scores that records have.
        group_by_medium: yield records with the same first medium together, so that it is fetched
            once; holds all records in memory.
        identity: what counts as a duplicate.
        reads_folder: `rows` takes the input folder itself; the job's options identify its content.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterable[Any]]
    parse: Callable[[Any], Iterable[Record]]
    scores: tuple[str, ...] = ()
    group_by_medium: bool = False
    identity: Identity = "record"
    reads_folder: bool = False


class RecordReader:
    """Reads a corpus of a known format.

    A row that cannot be parsed, for whatever reason, becomes a row with nothing but a
    `parse_error`. If none of a file's first rows can, the format is wrong: a UserError with the
    error of the first.

    Args:
        name: the prefix of the record ids.
        path: a file, or a folder of files.
        fmt: the corpus' format.

    Raises:
        UserError: the input is missing or empty.
    """

    def __init__(self, name: str, path: Path, fmt: Format) -> None:
        self.files = [] if fmt.reads_folder else input_files(path, *fmt.suffixes)
        self._inputs = [path] if fmt.reads_folder else self.files
        self._root = input_root(path)
        self._name = name
        self._format = fmt

    def read(self, rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        numbered = enumerate(self._records())
        by_medium = self._format.group_by_medium
        groups = _by_medium(numbered) if by_medium else ([one] for one in numbered)
        pending: list[tuple[int, Record | str]] = []
        for group in groups:
            pending += group
            if len(pending) >= rows:
                yield self._table(pending)
                pending = []
        if pending:
            yield self._table(pending)

    def _records(self) -> Iterator[Record | str]:
        valid = False
        for file in self._inputs:
            errors: list[str] = []  # of the file's first rows, until one is valid
            found = False
            for one in self._parsed(file):
                if found:
                    yield one
                elif isinstance(one, str):
                    errors.append(one)
                    if len(errors) == _MAX_BAD_ROWS:
                        break
                else:
                    yield from errors
                    yield one
                    found = valid = True
            if not found and errors:
                if not valid or len(errors) == _MAX_BAD_ROWS:
                    raise UserError(f"{file}: record 0: {errors[0]}")
                yield from errors

    def _parsed(self, file: Path) -> Iterator[Record | str]:
        """The records of a file; a row that cannot be parsed gives its error."""
        for row in self._rows(file):
            if isinstance(row, BadRow):
                yield _printable(row.error)
                continue
            try:
                for record in self._format.parse(row):
                    yield self._check(file, record)
            except BadRecordError as error:
                yield _printable(str(error))
            except UserError:
                raise
            except Exception as error:  # a row of a shape that its parser does not expect
                yield _printable(f"{type(error).__name__}: {error}")

    def _rows(self, file: Path) -> Iterator[Any]:
        """The rows of a file; whatever else its reader raises says that it is of another format."""
        try:
            yield from self._format.rows(file)
        except UserError:
            raise
        except Exception as error:  # a document of a shape that its reader does not expect
            raise UserError(
                f"{file}: not of this format ({type(error).__name__}: {error})"
            ) from error

    def _check(self, file: Path, record: Record) -> Record:
        """The record, with the file of its embedded media; BadRecordError if it is not valid."""
        check_record(record)
        if not any(is_unnamed(ref.url) for ref in record.media):
            return record
        name = file.relative_to(self._root).as_posix()
        media = (
            dataclasses.replace(ref, url=in_file(ref.url, name)) if is_unnamed(ref.url) else ref
            for ref in record.media
        )
        return dataclasses.replace(record, media=tuple(media))

    def _table(self, numbered: Sequence[tuple[int, Record | str]]) -> pa.Table:
        records = [
            found if isinstance(found, Record) else Record(turns=()) for _, found in numbered
        ]
        columns: dict[str, Any] = {
            "row": [row for row, _ in numbered],
            "id": [record_id(self._name, record) for record in records],
            "url": [self._url(record) for record in records],
            "turns": [list(map(vars, record.turns)) for record in records],
            "lineage": [json.dumps(dict(record.lineage)) for record in records],
            "media": [list(map(vars, record.media)) for record in records],
            "rejected": [list(map(vars, record.rejected)) for record in records],
            "feedback": [list(map(vars, record.feedback)) for record in records],
            "caption": [record.caption for record in records],
            "parse_error": [found if isinstance(found, str) else None for _, found in numbered],
        }
        fields = [*CANDIDATES, *OPTIONAL]
        for name in self._format.scores:
            columns[f"score.{name}"] = [record.scores.get(name) for record in records]
            fields.append(pa.field(f"score.{name}", pa.float32()))
        return pa.table(columns, schema=pa.schema(fields))

    @staticmethod
    def _url(record: Record) -> str | None:
        return display_url(record.media[0].url) if record.media else None


def _printable(error: str) -> str:
    """An error message without what Arrow cannot hold."""
    return error.encode("utf-8", "backslashreplace").decode()


def check_record(record: Record) -> None:
    """Check that Arrow can hold a record, whatever its corpus had in its fields.

    Raises:
        BadRecordError: a text that is not a string or not valid Unicode (such as half of a
            surrogate pair), an unknown role or kind of medium, or a score that is not a number.
    """
    turns = (*record.turns, *record.rejected, *record.feedback)
    texts = [text for turn in turns for text in (turn.role, turn.text)]
    texts += [text for ref in record.media for text in (ref.kind, ref.url)]
    texts += [text for item in record.lineage.items() for text in item]
    texts += [record.caption] if record.caption is not None else []
    try:
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError):
        raise BadRecordError(_not_text(texts)) from None
    for turn in turns:
        if turn.role not in ROLES:
            raise BadRecordError(f"role {turn.role!r:.40}, want one of {', '.join(ROLES)}")
    for ref in record.media:
        if ref.kind not in PLACEHOLDERS:
            raise BadRecordError(f"unknown kind of medium {ref.kind!r:.40}")
        for seconds in (ref.start, ref.length):
            _check_number(seconds)
    for value in record.scores.values():
        _check_number(value)


def _not_text(texts: Sequence[Any]) -> str:
    """What is wrong with the first text that Arrow cannot hold."""
    for text in texts:
        if not isinstance(text, str):
            return f"want a text instead of {text!r:.60}"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"not valid Unicode: {text[:40]!r} ({error.reason})"
    return "not valid Unicode"


def _check_number(value: object) -> None:
    try:
        valid = value is None or (isinstance(value, int | float) and float(value) is not None)
    except OverflowError:
        valid = False
    if not valid:
        raise BadRecordError(f"want a number instead of {value!r:.60}")


def _by_medium(
    numbered: Iterable[tuple[int, Record | str]],
) -> Iterable[list[tuple[int, Record | str]]]:
    """Group records by their first medium; a group has the position of its first record."""
    groups: dict[Any, list[tuple[int, Record | str]]] = {}
    for row, record in numbered:
        shared = isinstance(record, Record) and record.media
        groups.setdefault(record.media[0] if shared else row, []).append((row, record))  # type: ignore[union-attr]
    return groups.values()


def record_id(source: str, record: Record) -> str:
    """An id made from the record's content: the locations of its media, and its texts."""
    media: Any = [list(vars(ref).values()) for ref in record.media]
    if len(record.media) == 1 and record.media[0].start is None:
        media = record.media[0].url
    parts = [media or None, json.dumps(list(map(vars, record.turns)))]
    if record.rejected or record.feedback:
        parts.append([list(map(vars, turns)) for turns in (record.rejected, record.feedback)])
    return content_id(source, parts)


def content_id(source: str, parts: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    """The source and 20 hex digits of a hash of the parts."""
    return f"{source}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]}"


def require_field(record: Any, key: str, kind: type | tuple[type, ...] = object) -> Any:  # noqa: ANN401
    """A field of a record.

    Raises:
        BadRecordError: it is missing (with a similar name, if any) or of another type.
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


JUDGED = ("label", "kto_tag")
"""The fields of a thumb up or down: TRL's and ms-swift's, LLaMA-Factory's."""
EXPORTED = ("scores", "lineage")
"""Fields that `etl/export.py` writes: objects, or in tables JSON of these."""


def exported_lineage(record: Mapping[str, Any]) -> dict[str, str]:
    """The lineage of a record that `etl/export.py` wrote; empty for others."""
    value = record.get("lineage")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return string_fields(value) if isinstance(value, dict) else {}


def string_fields(record: Mapping[str, Any], *excluded: str) -> dict[str, str]:
    """The string fields of a record except the excluded ones, for its lineage."""
    return {k: v for k, v in record.items() if k not in excluded and isinstance(v, str)}
