"""Instruction dialogues of the LLaVA family: `{id, image, conversations: [{from, value}]}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from etl.sources.base import BadRecordError, Format, Record, Ref, take, texts
from etl.sources.files import json_rows
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Turn

ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    "system": "system",
}
"""What the family's files call the speakers."""

_FIELDS = {
    **{"image": "image", "video": "video", "audio": "audio", "pcl": "points", "point": "points"},
}
"""Field that names media → their kind; a string, or a list of strings."""

_TOKENS = re.compile(r"<(?:image|video|audio|point|points|pcl|pointcloud|point_cloud)>", re.I)
"""What the family's files write where a medium belongs."""

_KINDS = {"point": "points", "pcl": "points", "pointcloud": "points", "point_cloud": "points"}


def llava(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """LLaVA-150K, -mix665K, LLaVAR, StableLLaVA, ShareGPT4V, SoM-LLaVA, LAMM, BuboGPT and kin.

    Media are named by the fields `image`, `video`, `audio`, `pcl` and `point`; a record without any
    is a dialogue of text alone. Where no text says where the media belong (LAMM), they come first.
    Further string fields (such as `kind`) go into lineage.
    """
    turns = speech(take(record, "conversations"))
    media = tuple(
        Ref(kind=kind, url=url)
        for name, kind in _FIELDS.items()
        for url in names_in(record.get(name), name)
    )
    lineage = texts(record, "id", *_FIELDS)
    if "id" in record:
        lineage["original_id"] = str(record["id"])
    yield placed(turns, media, **lineage)


def placed(turns: Sequence[Turn], media: Sequence[Ref], **lineage: str) -> Record:
    """A dialogue whose texts say where its media belong, in whatever spelling, or do not."""
    turns = tuple(Turn(role=turn.role, text=_TOKENS.sub(_ours, turn.text)) for turn in turns)
    order = [_kind(token) for turn in turns for token in PLACEHOLDER_PATTERN.findall(turn.text)]
    if not order:
        return Record(turns=showing(turns, media), media=tuple(media), lineage=lineage)
    if sorted(order) == sorted(ref.kind for ref in media):  # fields are told by kind, not by place
        left = {kind: [ref for ref in media if ref.kind == kind] for kind in order}
        media = [left[kind].pop(0) for kind in order]
    return Record(turns=turns, media=tuple(media), lineage=lineage)


def _kind(token: str) -> str:
    name = token.strip("<>").lower()
    return _KINDS.get(name, name)


def _ours(match: re.Match[str]) -> str:
    return PLACEHOLDERS[_kind(match[0])]


def names_in(value: Any, field: str) -> Sequence[str]:  # noqa: ANN401
    """One name or several, of a field that may be absent or null."""
    if value is None or value == "":
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in found):
        raise BadRecordError(f"{field} is {value!r:.60}, want a name or a list of names")
    return found


def speech(conversations: Any) -> tuple[Turn, ...]:  # noqa: ANN401
    """Turns of a list of {from, value}."""
    try:
        turns = [(ROLES[turn["from"].lower()], turn["value"]) for turn in conversations]
    except (KeyError, TypeError, AttributeError):
        turns = [("", None)]
    if not all(isinstance(text, str) for _, text in turns):
        raise BadRecordError(f"want conversations of {{from, value}}, from one of {sorted(ROLES)}")
    return tuple(Turn(role=role, text=text) for role, text in turns)


def asked(question: str, answer: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)


def showing(turns: Sequence[Turn], media: Sequence[Ref]) -> tuple[Turn, ...]:
    """Turns with the media's placeholders before the first thing that the user says."""
    head = "".join(f"{PLACEHOLDERS[ref.kind]}\n" for ref in media)
    spoken = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if spoken is None or not head:
        return tuple(turns)
    first = Turn(role="user", text=head + turns[spoken].text)
    return (*turns[:spoken], first, *turns[spoken + 1 :])


LLAVA = Format(suffixes=(".json", ".jsonl"), rows=json_rows, parse=llava, together=True)
