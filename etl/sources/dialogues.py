"""Instruction dialogues in LLaVA's format: `{id, image, conversations: [{from, value}]}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field, string_fields
from etl.sources.files import json_rows
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Turn

ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    "system": "system",
}
"""Speaker names in these files → role."""

_FIELDS = {
    **{"image": "image", "video": "video", "audio": "audio", "pcl": "points", "point": "points"},
}
"""Field that names media (a string, or a list of strings) → their kind."""

_TOKENS = re.compile(
    r"(?<!\\)<(?:image|video|audio|point|points|pcl|pointcloud|point_cloud)>", re.IGNORECASE
)
"""The placeholder spellings in these files; with a backslash before it, one is plain text."""

_KINDS = {"point": "points", "pcl": "points", "pointcloud": "points", "point_cloud": "points"}


def llava(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """LLaVA-150K, -mix665K, LLaVAR, StableLLaVA, ShareGPT4V, SoM-LLaVA, LAMM, BuboGPT and others.

    The fields `image`, `video`, `audio`, `pcl` and `point` name media; a record without any is a
    text-only dialogue. If no text contains a placeholder (LAMM), the media come first. Further
    string fields (such as `kind`) go into lineage.
    """
    turns = parse_conversations(require_field(record, "conversations"))
    media = tuple(
        MediaRef(kind=kind, url=url)
        for name, kind in _FIELDS.items()
        for url in media_names(record.get(name), name)
    )
    lineage = string_fields(record, "id", *_FIELDS)
    if "id" in record:
        lineage["original_id"] = str(record["id"])
    yield dialogue(turns, media, **lineage)


def dialogue(turns: Sequence[Turn], media: Sequence[MediaRef], **lineage: str) -> Record:
    """A record of turns with placeholders in any spelling; without any, the media come first."""
    turns = tuple(Turn(role=turn.role, text=_TOKENS.sub(_canonical, turn.text)) for turn in turns)
    order = [_kind(token) for turn in turns for token in PLACEHOLDER_PATTERN.findall(turn.text)]
    if not order:
        turns = prepend_placeholders(turns, media)
        return Record(turns=turns, media=tuple(media), lineage=lineage)
    if sorted(order) == sorted(
        ref.kind for ref in media
    ):  # fields are listed by kind, not in order
        remaining = {kind: [ref for ref in media if ref.kind == kind] for kind in order}
        media = [remaining[kind].pop(0) for kind in order]
    return Record(turns=turns, media=tuple(media), lineage=lineage)


def _kind(token: str) -> str:
    name = token.strip("<>").lower()
    return _KINDS.get(name, name)


def _canonical(match: re.Match[str]) -> str:
    return PLACEHOLDERS[_kind(match[0])]


def media_names(value: Any, field: str) -> Sequence[str]:  # noqa: ANN401
    """The names in a field that may be a string, a list of strings, absent or null."""
    if value is None or value == "":
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in found):
        raise BadRecordError(f"{field} is {value!r:.60}, want a name or a list of names")
    return found


def parse_conversations(conversations: Any) -> tuple[Turn, ...]:  # noqa: ANN401
    """The turns of a list of {from, value}."""
    try:
        turns = [(ROLES[turn["from"].lower()], turn["value"]) for turn in conversations]
    except (KeyError, TypeError, AttributeError):
        turns = [("", None)]
    if not all(isinstance(text, str) for _, text in turns):
        raise BadRecordError(f"want conversations of {{from, value}}, from one of {sorted(ROLES)}")
    return tuple(Turn(role=role, text=text) for role, text in turns)


def question_answer(question: str, answer: str) -> tuple[Turn, Turn]:
    """The two turns of a question and its answer."""
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)


def prepend_placeholders(turns: Sequence[Turn], media: Sequence[MediaRef]) -> tuple[Turn, ...]:
    """Turns with the media's placeholders at the start of the first user turn."""
    head = "".join(f"{PLACEHOLDERS[ref.kind]}\n" for ref in media)
    index = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if index is None or not head:
        return tuple(turns)
    first = Turn(role="user", text=head + turns[index].text)
    return (*turns[:index], first, *turns[index + 1 :])


LLAVA = Format(suffixes=(".json", ".jsonl"), rows=json_rows, parse=llava, group_by_medium=True)
FORMATS: Mapping[str, Format] = {"llava": LLAVA}
