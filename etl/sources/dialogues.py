"""Dialogues as most projects write them, with or without a rejected answer.

LLaVA's and ShareGPT's `conversations` and OpenAI's `messages` with columns of media, as
LLaMA-Factory (data/README.md), ms-swift (docs: Custom-dataset) and TRL (docs: dataset_formats)
document them; and their records of one question and its answer (Alpaca, query-response,
prompt-completion).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.sources.base import (
    EXPORTED,
    JUDGED,
    BadRecordError,
    Format,
    Record,
    exported_lineage,
    require_field,
)
from etl.sources.boxes import fill_boxes
from etl.sources.fields import lineage_fields, media_fields
from etl.sources.files import parquet_or_json_rows
from etl.sources.pair_files import dialogue_rows
from etl.sources.turns import Dialogue, make_record, parse_turns, say
from etl.storage.schema import Turn

TURNS_FIELDS = ("conversations", "messages", "conversation")
_REJECTED = ("rejected_conversations", "rejected_messages", "rejected_response", "rejected")
_SYSTEM = ("system", "system_prompt")


def messages(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON, or a row of parquet
    """A dialogue: `{id, image, conversations: [{from, value}]}`, `{messages, images}` and so on.

    LLaVA-150K, -mix665K, LLaVAR, ShareGPT4V, SoM-LLaVA, LAMM, Qwen-VL, Ferret, POVID and others; a
    record without media is a text-only dialogue. The turns are `conversations`, `messages`,
    `conversation`, or TRL's lists `prompt` and `completion`; see `etl.sources.turns` for what they
    hold, `media_fields` for the fields of media. A rejected answer is POVID's, LLaMA-Factory's,
    ms-swift's or TRL's field; the chosen one ends the turns. Boxes are written into the text. A
    list of dialogues that are to be packed into one sequence (Qwen2.5-VL) is taken apart.
    """
    if isinstance(record, list):
        for one in record:
            yield from messages(one)
        return
    if not isinstance(record, dict):
        raise BadRecordError("want an object with 'conversations' or 'messages'")
    field = next((name for name in TURNS_FIELDS if record.get(name) is not None), None)
    listed = [name for name in ("prompt", "completion") if isinstance(record.get(name), list)]
    if field:
        read = [field]
        dialogue = parse_turns(record[field])
    elif listed or isinstance(record.get("chosen"), list):
        read = listed
        dialogue = Dialogue(turns=())
        for name in listed:
            dialogue += parse_turns(record[name])
    else:
        require_field(record, "conversations")
        raise BadRecordError("its conversations are null")
    read += [name for name in ("objects", "box_x1y1x2y2", "masks") if name in record]
    yield _finish(record, fill_boxes(record, dialogue), read)


_QUESTIONS = ("question", "query", "instruction", "prompt")
_ANSWERS = ("output", "response", "answer", "completion", "chosen")


def question_and_answer(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """One question and its answer, after the turns of `history`, if any.

    Alpaca's `{instruction, input, output, system, history}`, ms-swift's `{query, response}`, TRL's
    `{prompt, completion}`, StableLLaVA's `{id, image, prompt, question, answer}`, and Alpaca's and
    TRL's preferences, `{instruction | prompt, chosen, rejected}`. Media as in `messages`.
    """
    question = _first(record, _QUESTIONS)
    answer = _first(record, _ANSWERS)
    read = [question, answer, "history", "input"]
    text = require_field(record, question, str)
    if question == "instruction" and record.get("input"):
        text = "\n".join(part for part in (text, require_field(record, "input", str)) if part)
    dialogue = Dialogue(turns=())
    for past in record.get("history") or ():
        if not isinstance(past, list) or len(past) != 2:
            raise BadRecordError(f"its history has {past!r:.60}, want pairs of question and answer")
        dialogue += _said("user", past[0]) + _said("assistant", past[1])
    dialogue += _said("user", text)
    if answer != "chosen":
        dialogue += _said("assistant", record[answer])
    yield _finish(record, dialogue, read)


def _first(record: Any, names: Sequence[str]) -> str:  # noqa: ANN401
    """The first of some fields that a record has."""
    if not isinstance(record, dict):
        raise BadRecordError(f"want an object with {names[0]!r}")
    for name in names:
        if record.get(name) is not None:
            return name
    raise BadRecordError(f"no field {' or '.join(map(repr, names))} among {sorted(record)}")


def _said(role: str, text: Any) -> Dialogue:  # noqa: ANN401
    if not isinstance(text, str):
        raise BadRecordError(f"the {role} says {text!r:.60}, want a text")
    return say(role, text)


def _finish(record: Mapping[str, Any], dialogue: Dialogue, read: Sequence[str]) -> Record:
    """The record of a dialogue: with its system prompt, its rejected answer, media and lineage."""
    for name in JUDGED:
        if record.get(name) is False:
            raise BadRecordError(f"its answer was judged undesirable ({name}: false)")
    system = next((name for name in _SYSTEM if isinstance(record.get(name), str)), None)
    if system:
        has_own = dialogue.turns[:1] and dialogue.turns[0].role == "system"
        if record[system] and not has_own:
            dialogue = say("system", record[system]) + dialogue
    dialogue, rejected = _choose(record, dialogue)
    own = media_fields(record)
    others = media_fields(
        {k.removeprefix("rejected_"): v for k, v in record.items() if k.startswith("rejected_")},
        *(name.removeprefix("rejected_") for name in _REJECTED),
    )
    if any(own.get(name) != refs for name, refs in others.items()):
        raise BadRecordError("its rejected answer has other media, which a sample cannot hold")
    media = [ref for refs in own.values() for ref in refs]
    known = (*read, *own, *(f"rejected_{name}" for name in others), *_REJECTED, "chosen", system)
    exported = exported_lineage(record)
    known += EXPORTED if exported or "messages" in read else ()
    lineage = lineage_fields(record, *filter(None, known), media=media or dialogue.named)
    said = record.get("feedback")
    feedback = parse_turns(said).turns if isinstance(said, list) else ()
    if rejected and isinstance(said, str) and said.strip():
        lineage.pop("feedback")
        feedback = say("user", said).turns
    return make_record(
        dialogue, media, rejected=rejected, feedback=feedback, lineage={**exported, **lineage}
    )


def _choose(record: Mapping[str, Any], dialogue: Dialogue) -> tuple[Dialogue, tuple[Turn, ...]]:
    """A dialogue that ends with the chosen answer, and the turns of the rejected one, if any."""
    if record.get("chosen") is not None:
        if dialogue.turns and dialogue.turns[-1].role == "assistant":
            raise BadRecordError("it has a chosen answer, but its turns end with another one")
        dialogue += _answer(record["chosen"])
    name = next((name for name in _REJECTED if record.get(name) is not None), None)
    if name is None:
        return dialogue, ()
    rejected = _answer(record[name])
    if not dialogue.turns or dialogue.turns[-1].role != "assistant":
        raise BadRecordError(f"it has {name}, but no chosen answer ends its turns")
    before, last = dialogue.turns[:-1], dialogue.turns[-1]
    turns = rejected.turns
    if turns[: len(before)] == before or len(turns) > 1:
        if turns[: len(before)] != before:
            raise BadRecordError(f"{name} differs from its turns before the last answer")
        turns = turns[len(before) :]
    if [turn.role for turn in turns] != ["assistant"]:
        raise BadRecordError(f"{name} is not one answer")
    if turns[0].text == last.text:
        raise BadRecordError(f"{name} is the same as the chosen answer")
    return dialogue, turns


def _answer(value: Any) -> Dialogue:  # noqa: ANN401
    """An answer as a text, a turn or a list of turns."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return say("assistant", value)
    return parse_turns([value] if isinstance(value, dict) else value)


_SUFFIXES = (".json", ".jsonl", ".parquet")
LLAVA = Format(
    suffixes=(*_SUFFIXES, ".tar"), rows=dialogue_rows, parse=messages, group_by_medium=True
)
ALPACA = Format(suffixes=_SUFFIXES, rows=parquet_or_json_rows, parse=question_and_answer)
FORMATS: Mapping[str, Format] = {
    "llava": LLAVA,
    "messages": LLAVA,
    "alpaca": ALPACA,
    "query-response": ALPACA,
}
