"""Which format a list of dialogues, questions or preferences has, by its first record's fields.

A format of more fields is preferred, since those of another may be among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.cli import UserError
from etl.sources.base import JUDGED


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the first record of a file of one format looks like.

    `container` is the field of the document that holds the records ("" for a list of records, or
    an object of records by their ids), `fields` are those that a record must have, and `check`
    decides where these do not.
    """

    fields: tuple[str, ...]
    container: str = ""
    check: Callable[[Mapping[str, Any]], bool] = lambda _: True


def _first_turn(record: Mapping[str, Any], field: str) -> Any:  # noqa: ANN401
    turns = record.get(field)
    return turns[0] if isinstance(turns, list) and turns else None


def _nested(record: Mapping[str, Any]) -> bool:
    """Whether its conversations are lists of turns (SVIT)."""
    first = _first_turn(record, "conversations")
    return isinstance(first, dict) and isinstance(first.get("content"), list)


def _spoken(record: Mapping[str, Any]) -> bool:
    return not _nested(record) or "role" in _first_turn(record, "conversations")


def _listed(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether some fields hold turns."""
    return lambda record: all(isinstance(record.get(name), list) for name in fields)


def _text(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether some fields hold texts."""
    return lambda record: all(isinstance(record.get(name), str) for name in fields)


def _judged(*turns: str, kind: type = list) -> tuple[Look, ...]:
    """How records with a thumb look, whose turns or texts are in these fields."""

    def check(record: Mapping[str, Any]) -> bool:
        judged = any(isinstance(record.get(name), bool) for name in JUDGED)
        return judged and all(isinstance(record.get(name), kind) for name in turns)

    return tuple(Look(fields=(*turns, name), check=check) for name in JUDGED)


_NEXT_GPT = tuple(
    Look(fields=(f"{side}_{kind}", "conversations"))
    for side in ("input", "output")
    for kind in ("image", "video", "audio")
)
INSTRUCTIONS: Mapping[str, tuple[Look, ...]] = {
    "llava": (Look(fields=("conversations",), check=_spoken),),
    "messages": (
        Look(fields=("messages",)),
        Look(fields=("conversation",)),
        Look(fields=("prompt", "completion"), check=_listed("prompt", "completion")),
        Look(fields=("prompt", "chosen"), check=_listed("prompt", "chosen")),
        Look(fields=("chosen", "rejected"), check=_listed("chosen", "rejected")),
    ),
    "alpaca": (
        Look(fields=("instruction", "output")),
        Look(fields=("instruction", "chosen", "rejected")),
    ),
    "query-response": (
        Look(fields=("query", "response")),
        Look(fields=("prompt", "completion"), check=_text("prompt", "completion")),
        Look(fields=("prompt", "chosen", "rejected"), check=_text("prompt", "chosen")),
        Look(fields=("prompt", "response")),
        Look(fields=("id", "image", "prompt", "question", "answer")),
    ),
    "svit": (Look(fields=("image_id", "conversations"), check=_nested),),
    "minigpt4": (Look(fields=("image_id", "caption"), container="annotations"),),
    "bubogpt": (
        Look(fields=("audio_id", "caption"), container="annotations"),
        Look(fields=("audio_id", "image_id", "caption"), container="annotations"),
    ),
    "osprey": (
        Look(fields=("file_name", "annotation", "conversations")),
        Look(fields=("file_name", "annotation", "description")),
    ),
    "pandagpt": (Look(fields=("image_name", "conversation")),),
    "videochat": (Look(fields=("video", "QA")), Look(fields=("image", "QA"))),
    "video-chatgpt": (Look(fields=("q", "a", "video_id")),),
    "mimic-it": (Look(fields=("instruction", "answer"), container="data"),),
    "m3it": (
        Look(fields=("instruction", "outputs", "image_base64_str")),
        Look(fields=("instruction", "inputs", "outputs", "image")),
    ),
    "docowl": (Look(fields=("image", "text")),),
    "next-gpt": (
        Look(fields=("image_list", "conversation")),
        Look(fields=("image_name", "output_modality", "conversation")),
        Look(fields=("mm_name", "conversation")),
        Look(fields=("source_data", "conversation")),
        *_NEXT_GPT,
    ),
    "shikra": (
        Look(fields=("img_path", "expression", "bbox")),
        Look(fields=("image_id", "sentence", "boxes")),
        Look(fields=("img_path", "question", "boxes")),
    ),
    "vqa": (
        Look(fields=("question_id", "question"), container="questions"),
        Look(fields=("question_id", "answers"), container="annotations"),
    ),
    "gqa": (Look(fields=("imageId", "question", "answer")),),
    "a-okvqa": (Look(fields=("image_id", "question", "direct_answers")),),
    "ocr-vqa": (Look(fields=("imageURL", "questions", "answers")),),
    "st-vqa": (Look(fields=("file_path", "question", "answers"), container="data"),),
    "vgqa": (Look(fields=("id", "qas")),),
    "dvqa": (Look(fields=("image", "question", "answer", "question_id")),),
    "doc-vqa": (
        Look(fields=("image", "question", "answers"), container="data"),
        Look(fields=("image_id", "question", "answers"), container="data"),
    ),
    "visual7w": (Look(fields=("filename", "qa_pairs"), container="images"),),
    "arxiv-qa": (Look(fields=("image", "options", "question", "label")),),
}
"""The formats of `etl/instruct.py`."""

PREFERENCES: Mapping[str, tuple[Look, ...]] = {
    "messages": (
        Look(fields=("conversations", "chosen", "rejected")),
        Look(fields=("messages", "chosen", "rejected")),
        *(
            Look(fields=(turns, f"rejected{name}"))
            for turns in ("messages", "conversations")
            for name in ("", "_response", "_messages", "_conversations")
        ),
        Look(fields=("prompt", "chosen", "rejected"), check=_listed("prompt", "chosen")),
        Look(fields=("chosen", "rejected"), check=_listed("chosen", "rejected")),
        *_judged("messages"),
        *_judged("conversations"),
        *_judged("prompt", "completion"),
    ),
    "alpaca": (
        Look(fields=("instruction", "chosen", "rejected")),
        Look(fields=("query", "response", "rejected_response")),
        *_judged("prompt", "completion", kind=str),
        *_judged("instruction", "output", kind=str),
        *_judged("query", "response", kind=str),
    ),
    "rlhf-v": (
        Look(fields=("image", "text"), check=lambda record: "completions" not in record),
        Look(fields=("question", "chosen", "rejected")),
        Look(fields=("prompt", "chosen", "rejected"), check=_text("prompt", "chosen")),
    ),
    "llava-rlhf": (Look(fields=("conversations", "output_1", "output_2", "preference")),),
    "dress": (Look(fields=("image_id", "interaction")),),
    "vlfeedback": (Look(fields=("prompt", "completions")),),
    "vlguard": (Look(fields=("image", "instr-resp")),),
}
"""The formats of `etl/preference.py`."""

DOCUMENTS: Mapping[str, tuple[Look, ...]] = {
    "mmc4": (Look(fields=("text_list", "image_info")),),
    "obelics": (Look(fields=("images", "texts")),),
}
"""The formats of `etl/interleaved.py`."""


def detect(
    content: Any,  # noqa: ANN401
    looks: Mapping[str, Sequence[Look]],
    columns: Sequence[str] = (),
) -> str:
    """The name of the format of a file with this first content (see `etl.runtime.corpus.peek`).

    Args:
        content: of the file.
        looks: of the formats that it may have.
        columns: other names of fields, see `etl.sources.fields.with_columns`.

    Raises:
        UserError: it is none of them; the message names the nearest and what it lacks.
    """
    ours = {theirs: name for name, _, theirs in (column.partition("=") for column in columns)}
    found = {
        container: {ours.get(name, name): value for name, value in record.items()}
        for container, record in _first_records(content)
    }
    if not found:
        raise UserError("want a list of objects, or an object that holds one")
    candidates = [
        (name, look, found[look.container])
        for name, shapes in looks.items()
        for look in shapes
        if look.container in found
    ]
    fitting = [
        (name, len(look.fields))
        for name, look, record in candidates
        if all(field in record for field in look.fields) and look.check(record)
    ]
    if fitting:
        return max(fitting, key=lambda one: one[1])[0]
    container, record = next(iter(found.items()))
    where = f" in {container!r}" if container else ""
    message = f"unknown format: its first record{where} has the fields {', '.join(sorted(record))}"
    raise UserError(f"{message}{COCO_RESULTS if is_coco_result(record) else _nearest(candidates)}")


def _nearest(candidates: Sequence[tuple[str, Look, Mapping[str, Any]]]) -> str:
    """Which format lacks the smallest share of its fields; one of a similar name counts half."""
    best: tuple[float, str] = (0.0, "")
    for name, look, record in candidates:
        lacking = [field for field in look.fields if field not in record]
        alike = sum(bool(difflib.get_close_matches(one, record, cutoff=0.5)) for one in lacking)
        share = (len(look.fields) - len(lacking) + alike / 2) / len(look.fields)
        if share > best[0]:
            lacks = " and ".join(lacking) or "its own form of turns"
            best = (share, f"; the nearest is --format {name}, for which {lacks} would be needed")
    return best[1]


COCO_RESULTS = "; these are results of a model on COCO, which name no image files: want annotations"


def is_coco_result(record: Any) -> bool:  # noqa: ANN401
    """Whether a record is a model's result: `{image_id, caption}`, or `{image_id, …, score}`.

    See https://cocodataset.org/#format-results.
    """
    if not isinstance(record, dict) or not isinstance(record.get("image_id"), int):
        return False
    return set(record) <= {"image_id", "caption", "id"} or "score" in record


def _first_records(content: Any) -> list[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401
    """The first record of a document, by the field that holds the records."""
    if isinstance(content, list):
        rows = (row[0] if isinstance(row, list) and row else row for row in content)
        first = next((row for row in rows if isinstance(row, dict)), None)
        return [] if first is None else [("", first)]
    if not isinstance(content, dict):
        return []
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, value in content.items():
        records = list(value.values())[:1] if isinstance(value, dict) else value
        if isinstance(records, list) and records and isinstance(records[0], dict):
            found.append((name, records[0]))
    first = next(iter(content.values()), None)
    if isinstance(first, dict):  # records by their ids
        found.append(("", first))
    return found
