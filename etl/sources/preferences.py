"""Preferences and written feedback: the chosen answer in the turns, the other in `rejected`.

An answer with a thumb up ends the turns, one with a thumb down is `rejected` alone. `feedback` is
the critique of the rejected answer by a person or a model.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etl.sources import dialogues
from etl.sources.base import JUDGED, BadRecordError, Format, MediaRef, Record, require_field
from etl.sources.fields import lineage_fields, media_fields, media_names
from etl.sources.files import parquet_or_json_rows
from etl.sources.turns import Dialogue, make_record, parse_turns, question_answer, say
from etl.storage.schema import THUMB, Turn


def _image(record: Mapping[str, Any], *fields: str) -> tuple[MediaRef, ...]:
    """The image in the first of some fields that has one."""
    for field in fields:
        names = media_names(record.get(field), field)
        if names:
            return tuple(MediaRef(kind="image", url=name) for name in names)
    return ()


def _preference(
    dialogue: Dialogue,
    media: Sequence[MediaRef],
    *,
    rejected: str | None = None,
    feedback: Sequence[str] = (),
    scores: Mapping[str, float | None] | None = None,
    lineage: Mapping[str, str] | None = None,
) -> Record:
    return make_record(
        dialogue,
        media,
        rejected=() if rejected is None else (Turn(role="assistant", text=rejected),),
        feedback=tuple(Turn(role="user", text=text) for text in feedback if text),
        scores=scores or {},
        lineage=lineage or {},
    )


def with_rejected(parse: Callable[[Any], Iterable[Record]]) -> Callable[[Any], Iterator[Record]]:
    """A parser of dialogues that takes those with a rejected answer only."""

    def parse_preference(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
        for found in parse(record):
            if not found.rejected:
                raise BadRecordError(f"no rejected answer among {sorted(record)}")
            yield found

    return parse_preference


def with_thumbs(parse: Callable[[Any], Iterable[Record]]) -> Callable[[Any], Iterator[Record]]:
    """A parser of dialogues with a rejected answer, or whose last answer has a thumb up or down.

    The thumb is a field `label` (TRL's unpaired preferences, ms-swift) or `kto_tag` (LLaMA-Factory)
    that is true or false.
    """
    preferences = with_rejected(parse)

    def parse_judged(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
        names = JUDGED if isinstance(record, dict) else ()
        name = next((name for name in names if isinstance(record.get(name), bool)), None)
        if name is None:
            yield from preferences(record)
            return
        for found in parse({key: value for key, value in record.items() if key != name}):
            if found.rejected:
                raise BadRecordError(f"it has {name} and a rejected answer, want one of them")
            yield _with_thumb(found, up=record[name])

    return parse_judged


def _with_thumb(record: Record, *, up: bool) -> Record:
    *turns, last = record.turns
    if last.role != "assistant":
        raise BadRecordError("its last turn is no answer that could be judged")
    record = dataclasses.replace(record, lineage={**record.lineage, THUMB: str(up).lower()})
    return record if up else dataclasses.replace(record, turns=tuple(turns), rejected=(last,))


def dress(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """DRESS (LVLM_NLF): `{image_id, interaction: [{user, model, rating, critique_NLF, …}]}`.

    Each answer that was revised gives a pair: the next answer is chosen, this one rejected, its
    critique and refinement advice are the feedback. A single answer is kept with its critique and
    nothing rejected.
    """
    require_field(record, "image_id", str)
    media = _image(record, "image_id")
    lineage = lineage_fields(record, "image_id", "interaction", media=media)
    turns = require_field(record, "interaction", list)
    if not turns:
        raise BadRecordError("an interaction without turns")
    question = require_field(turns[0], "user", str)
    pairs = list(itertools.pairwise(turns)) or [(None, turns[0])]
    for rejected, chosen in pairs:
        rated = rejected or chosen
        notes = [str(rated.get(f"{kind}_NLF") or "") for kind in ("critique", "refinement")]
        yield _preference(
            question_answer(question, require_field(chosen, "model", str)),
            media,
            rejected=require_field(rejected, "model", str) if rejected else None,
            feedback=notes,
            scores={"rating": _rating(rated.get("rating"))},
            lineage=lineage,
        )


def _rating(value: Any) -> float | None:  # noqa: ANN401
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None  # "N/A"


def llava_rlhf(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """LLaVA-RLHF: `{image, conversations, output_1, output_2, preference: 1 | 2}`.

    An output replaces the last turn, which its loader asserts to be the assistant's
    (RLHF/data_utils/data_utils_rm.py); turns without one are followed by it.
    """
    outputs = [
        require_field(require_field(record, name), "value", str)
        for name in ("output_1", "output_2")
    ]
    preference = require_field(record, "preference")
    if preference not in (1, 2):
        raise BadRecordError(f"preference is {preference!r}, want 1 or 2")
    dialogue = parse_turns(require_field(record, "conversations", list))
    if dialogue.turns[-1:] and dialogue.turns[-1].role == "assistant":
        *turns, last = dialogue.turns
        count = len(say(last.role, last.text).named)
        named = dialogue.named[: len(dialogue.named) - count]
        dialogue = Dialogue(turns=tuple(turns), named=named)
    dialogue += say("assistant", outputs[preference - 1])
    own = media_fields(record)
    media = [ref for refs in own.values() for ref in refs]
    read = ("conversations", "output_1", "output_2", "preference", *own)
    lineage = lineage_fields(record, *read, media=media)
    yield _preference(dialogue, media, rejected=outputs[2 - preference], lineage=lineage)


def rlhf_v(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """RLHF-V, RLAIF-V: `{image, text: {question, chosen, rejected}}`, `text` as JSON, or flat."""
    answers = record.get("text", record) if isinstance(record, dict) else record
    if isinstance(answers, str):
        try:
            answers = json.loads(answers)
        except ValueError:
            raise BadRecordError("its text is not JSON") from None
    key = "prompt" if isinstance(answers, dict) and "prompt" in answers else "question"
    question = require_field(answers, key, str)
    dialogue = question_answer(question, require_field(answers, "chosen", str))
    rejected = require_field(answers, "rejected", str)
    own = media_fields(record)
    media = [ref for refs in own.values() for ref in refs]
    read = ("text", *own) if answers is not record else (key, "chosen", "rejected", *own)
    lineage = lineage_fields(record, *read, media=media)
    yield _preference(dialogue, media, rejected=rejected, lineage=lineage)


def vlfeedback(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLFeedback: `{prompt, img_path, completions: [{response, annotations: {aspect: {Rating}}}]}`.

    `completions` may be an object of lists, as its loader has it (vlf-silkie/VLFeedback,
    run_dpo.py), and `image` hold the picture. Chosen is the best by mean rating, rejected the
    worst, whose rationales are the feedback.
    """
    media = _image(record, "image", "img_path") if isinstance(record, dict) else ()
    rated: list[tuple[float, Any, Any]] = []
    for completion in _rows(require_field(record, "completions", (list, dict))):
        aspects = _values(require_field(completion, "annotations", dict))
        ratings = [_rating(aspect.get("Rating")) for aspect in aspects]
        numbers = [rating for rating in ratings if rating is not None]
        if numbers:
            rated.append((sum(numbers) / len(numbers), completion, aspects))
    rated.sort(key=lambda one: one[0])
    if not rated or rated[0][0] == rated[-1][0]:
        raise BadRecordError("no answer is better than another")
    worst, best = rated[0], rated[-1]
    answers = [require_field(one[1], "response", str) for one in (best, worst)]
    lineage = lineage_fields(record, "prompt", "completions", "image", "img_path", media=media)
    yield _preference(
        question_answer(require_field(record, "prompt", str), answers[0]),
        media,
        rejected=answers[1],
        feedback=[str(aspect.get("Rationale") or "") for aspect in worst[2]],
        scores={"rating": best[0], "rejected_rating": worst[0]},
        lineage=lineage,
    )


def _rows(value: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The structs of a list, which may be published as an object of lists."""
    if isinstance(value, list):
        return value
    lists = {name: rows for name, rows in value.items() if isinstance(rows, list)}
    nested = {name: _rows(rows) for name, rows in value.items() if isinstance(rows, dict)}
    columns = {**lists, **nested}
    if len({len(rows) for rows in columns.values()}) != 1:
        raise BadRecordError(f"want lists of one length in {', '.join(map(str, value))}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(aspects: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ratings of an answer; parquet has a null for an aspect that was not rated."""
    return [aspect for aspect in aspects.values() if isinstance(aspect, dict)]


def vlguard(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLGuard: `{image, safe, instr-resp: [{instruction, response}]}`; nothing is rejected."""
    require_field(record, "image", (str, dict))
    media = _image(record, "image")
    lineage = lineage_fields(record, "image", "instr-resp", media=media)
    for one in require_field(record, "instr-resp", list):
        names = ("instruction", "safe_instruction", "unsafe_instruction")
        asked = next((name for name in names if isinstance(one, dict) and one.get(name)), None)
        if asked is None:
            raise BadRecordError(f"no instruction in {one!r:.60}")
        said = question_answer(require_field(one, asked, str), require_field(one, "response", str))
        flag = (
            {} if asked == "instruction" else {"instruction_safe": str(asked[:2] == "sa").lower()}
        )
        yield _preference(said, media, lineage={**lineage, **flag})


_FILES = (".json", ".jsonl", ".parquet")
_SCORES = ("rating", "rejected_rating")
DRESS = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=dress, scores=_SCORES)
LLAVA_RLHF = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=llava_rlhf, scores=_SCORES)
RLHF_V = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=rlhf_v, scores=_SCORES)
VLFEEDBACK = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlfeedback, scores=_SCORES)
VLGUARD = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlguard, scores=_SCORES)
DIALOGUES: Mapping[str, Format] = {
    name: dataclasses.replace(
        dialogues.FORMATS[name],
        parse=with_thumbs(dialogues.FORMATS[name].parse),
        group_by_medium=False,
        scores=_SCORES,
    )
    for name in ("messages", "alpaca")
}
"""The readers of dialogues, for records with a rejected answer or a thumb."""
FORMATS: Mapping[str, Format] = {
    "rlhf-v": RLHF_V,
    "llava-rlhf": LLAVA_RLHF,
    "dress": DRESS,
    "vlfeedback": VLFEEDBACK,
    "vlguard": VLGUARD,
}
