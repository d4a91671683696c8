"""The one record shape of all corpora, and its Arrow schema.

Pairs, interleaved documents, dialogues, grounding and preferences are all a `Sample`. Everything
that determines a sample's cost is in columns of its own, so planning never decodes a medium.
Imports neither Ray nor torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

SCHEMA_VERSION = 1

PLACEHOLDERS: Mapping[str, str] = {
    "image": "<image>",
    "video": "<video>",
    "audio": "<audio>",
    "points": "<points>",
}
"""Medium kind → the placeholder that stands for it in a turn's text."""

ROLES = ("system", "user", "assistant")

_KIND_OF = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}
_ANY = "|".join(map(re.escape, _KIND_OF))
PLACEHOLDER_PATTERN = re.compile(rf"(?<!\\)(?:{_ANY})")
"""A placeholder of a medium; with a backslash before it (`\\<image>`) it is plain text."""
_ESCAPED = re.compile(rf"\\({_ANY})")


def escape(text: str) -> str:
    r"""Return a text that has no media as a turn has it: `<image>` becomes `\<image>`."""
    return PLACEHOLDER_PATTERN.sub(r"\\\g<0>", text)


def unescape(text: str) -> str:
    r"""Return a turn's text as it reads: `\<image>` is `<image>`."""
    return _ESCAPED.sub(r"\1", text)


def words_of(text: str, medium: str = "") -> str:
    """Return a turn's text as it reads, with `medium` in place of each placeholder."""
    return unescape(PLACEHOLDER_PATTERN.sub(medium, text))


def split_media(text: str) -> list[tuple[str, str]]:
    """Split a turn's text at its placeholders: (kind, "") for a medium, ("", words) for text."""
    split: list[tuple[str, str]] = []
    end = 0
    for found in PLACEHOLDER_PATTERN.finditer(text):
        if found.start() > end:
            split.append(("", unescape(text[end : found.start()])))
        split.append((_KIND_OF[found[0]], ""))
        end = found.end()
    if end < len(text):
        split.append(("", unescape(text[end:])))
    return split


class SampleError(ValueError):
    """A sample that violates the schema; the message names the sample and the problem."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    r"""One utterance.

    `text` has one placeholder per medium, at the medium's position. `\<image>` is no placeholder
    but the text `<image>`.
    """

    role: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One encoded medium and the columns that determine its cost; None where one does not apply.

    Units: width and height in pixels, duration in seconds, sample_rate in Hz. The `data` of a
    medium in a shard are read when they are first needed.
    """

    kind: str
    data: bytes = field(repr=False)
    mime: str
    sha256: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration: float | None = None
    sample_rate: int | None = None
    points: int | None = None

    @classmethod
    def stored(cls, columns: Mapping[str, Any], read: Callable[[], bytes]) -> Medium:
        """Return a medium of all columns but `data`, which `read` returns."""
        medium = cls.__new__(cls)
        vars(medium).update(columns, _read=read)
        return medium

    if not TYPE_CHECKING:  # it would hide misspelt attributes

        def __getattr__(self, name: str) -> bytes:
            """Read `data`, if that is what lacks."""
            if name != "data" or "_read" not in vars(self):
                raise AttributeError(name)
            return vars(self).setdefault("data", vars(self)["_read"]())

    def columns(self) -> dict[str, Any]:
        """Return all columns; reads `data`."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with `data`."""
        return self.columns()


THUMB = "label"
"""The entry of `Sample.lineage` with an answer's thumb, `true` or `false`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training or evaluation record.

    `rejected` and `feedback` are the rejected answer and the critique of preference data; an answer
    with a thumb down is `rejected` after turns that lack one. `scores` are the ETL's filter scores,
    `lineage` records where the sample came from.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    media: tuple[Medium, ...] = ()
    rejected: tuple[Turn, ...] = ()
    feedback: tuple[Turn, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
_MEDIUM = pa.struct(
    [
        ("kind", pa.string()),
        ("data", pa.large_binary()),  # 64-bit offsets: a batch of videos passes 2 GiB
        ("mime", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("duration", pa.float32()),
        ("sample_rate", pa.int32()),
        ("points", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("turns", _TURNS, nullable=False),
        pa.field("media", pa.list_(_MEDIUM), nullable=False),
        pa.field("rejected", _TURNS),
        pa.field("feedback", _TURNS),
        pa.field("scores", pa.map_(pa.string(), pa.float32())),
        pa.field("lineage", pa.map_(pa.string(), pa.string())),
    ]
)


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def check(sample: Sample) -> None:
    """Raise SampleError unless roles are known and placeholders match the media, in order."""
    for turn in (*sample.turns, *sample.rejected, *sample.feedback):
        if turn.role not in ROLES:
            raise SampleError(f"sample {sample.id}: role {turn.role!r}, want one of {ROLES}")
    if not sample.turns:
        raise SampleError(f"sample {sample.id}: no turns")
    expected = [
        _KIND_OF[found] for turn in sample.turns for found in PLACEHOLDER_PATTERN.findall(turn.text)
    ]
    present = [medium.kind for medium in sample.media]
    if expected != present:
        raise SampleError(
            f"sample {sample.id}: its text has placeholders for {expected}, its media are {present}"
        )


def to_batch(samples: Iterable[Sample]) -> pa.RecordBatch:
    """Check samples and convert them to one Arrow record batch of `SCHEMA`."""
    rows = []
    for sample in samples:
        check(sample)
        rows.append(
            {
                "id": sample.id,
                "source": sample.source,
                "turns": [vars(turn) for turn in sample.turns],
                "media": [medium.columns() for medium in sample.media],
                "rejected": [vars(turn) for turn in sample.rejected],
                "feedback": [vars(turn) for turn in sample.feedback],
                "scores": list(sample.scores.items()),
                "lineage": list(sample.lineage.items()),
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def from_row(row: Mapping[str, Any], read: Callable[[int], bytes] | None = None) -> Sample:
    """The sample of one row, as `RecordBatch.to_pylist` returns it.

    Args:
        row: its columns.
        read: returns the data of the n-th medium, if the row lacks them.
    """
    return Sample(
        id=row["id"],
        source=row["source"],
        turns=_turns(row["turns"]),
        media=tuple(
            Medium.stored(medium, partial(read, number)) if read else Medium(**medium)
            for number, medium in enumerate(row["media"])
        ),
        rejected=_turns(row["rejected"]),
        feedback=_turns(row["feedback"]),
        scores=dict(row["scores"] or ()),
        lineage=dict(row["lineage"] or ()),
    )


def _turns(rows: Iterable[Mapping[str, str]] | None) -> tuple[Turn, ...]:
    return tuple(Turn(**row) for row in rows or ())
