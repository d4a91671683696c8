"""Preferences and written feedback: the chosen answer in the turns, the other in `rejected`.

`feedback` is the critique of the rejected answer by a person or a model.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field, string_fields
from etl.sources.dialogues import dialogue, media_names, parse_conversations, question_answer
from etl.sources.files import parquet_or_json_rows
from etl.storage.schema import Turn


def _media(image: Any) -> tuple[MediaRef, ...]:  # noqa: ANN401
    """An image by name or URL, or with its bytes, as in Hugging Face's parquet files."""
    if isinstance(image, dict) and image.get("bytes"):
        encoded = base64.b64encode(image["bytes"]).decode()
        return (MediaRef(kind="image", url=f"data:image/jpeg;base64,{encoded}"),)
    if isinstance(image, dict):
        image = image.get("path")
    return tuple(MediaRef(kind="image", url=name) for name in media_names(image, "image"))


def _preference(
    turns: Sequence[Turn],
    media: Sequence[MediaRef],
    *,
    rejected: str | None = None,
    feedback: Sequence[str] = (),
    scores: Mapping[str, float | None] | None = None,
    lineage: Mapping[str, str] | None = None,
) -> Record:
    record = dialogue(turns, media)
    return Record(
        turns=record.turns,
        media=record.media,
        rejected=() if rejected is None else (Turn(role="assistant", text=rejected),),
        feedback=tuple(Turn(role="user", text=text) for text in feedback if text),
        scores=scores or {},
        lineage=lineage or {},
    )


def dress(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """DRESS (LVLM_NLF): `{image_id, interaction: [{user, model, rating, critique_NLF, …}]}`.

    Each answer that was revised gives a pair: the next answer is chosen, this one rejected, its
    critique and refinement advice are the feedback. A single answer is kept with its critique and
    nothing rejected.
    """
    media = _media(require_field(record, "image_id", str))
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
        )


def _rating(value: Any) -> float | None:  # noqa: ANN401
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None  # "N/A"


def llava_rlhf(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """LLaVA-RLHF: `{image, conversations, output_1, output_2, preference: 1 | 2}`."""
    outputs = [
        require_field(require_field(record, name), "value", str)
        for name in ("output_1", "output_2")
    ]
    preference = require_field(record, "preference")
    if preference not in (1, 2):
        raise BadRecordError(f"preference is {preference!r}, want 1 or 2")
    turns = (
        *parse_conversations(require_field(record, "conversations", list)),
        Turn(role="assistant", text=outputs[preference - 1]),
    )
    other = outputs[2 - preference]
    yield _preference(turns, _media(record.get("image")), rejected=other)


def rlhf_v(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """RLHF-V: `{image, text: {question, chosen, rejected}}`, `text` may be JSON; or flat."""
    answers = record.get("text", record) if isinstance(record, dict) else record
    if isinstance(answers, str):
        try:
            answers = json.loads(answers)
        except ValueError:
            raise BadRecordError("its text is not JSON") from None
    key = "prompt" if "prompt" in answers else "question"
    question = require_field(answers, key, str)
    turns = question_answer(question, require_field(answers, "chosen", str))
    lineage = string_fields({} if answers is record else record, "text", "image")
    rejected = require_field(answers, "rejected", str)
    yield _preference(turns, _media(record.get("image")), rejected=rejected, lineage=lineage)


def vlfeedback(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLFeedback: `{prompt, image, completions: [{response, annotations: {aspect: {Rating}}}]}`.

    Chosen is the best by mean rating, rejected the worst, whose rationales are the feedback.
    """
    image = record.get("image") or record.get("img_path") if isinstance(record, dict) else None
    rated: list[tuple[float, Any]] = []
    for completion in require_field(record, "completions", list):
        aspects = require_field(completion, "annotations", dict).values()
        ratings = [_rating(aspect.get("Rating")) for aspect in aspects]
        numbers = [rating for rating in ratings if rating is not None]
        if numbers:
            rated.append((sum(numbers) / len(numbers), completion))
    rated.sort(key=lambda one: one[0])
    if not rated or rated[0][0] == rated[-1][0]:
        raise BadRecordError("no answer is better than another")
    worst, best = rated[0], rated[-1]
    reasons = [str(one.get("Rationale") or "") for one in worst[1]["annotations"].values()]
    yield _preference(
        question_answer(
            require_field(record, "prompt", str), require_field(best[1], "response", str)
        ),
        _media(image),
        rejected=require_field(worst[1], "response", str),
        feedback=reasons,
        scores={"rating": best[0], "rejected_rating": worst[0]},
    )


def vlguard(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLGuard: `{image, safe, instr-resp: [{instruction, response}]}`; nothing is rejected."""
    media = _media(require_field(record, "image", str))
    lineage = string_fields(record, "image", "instr-resp", "id")
    for one in require_field(record, "instr-resp", list):
        names = ("instruction", "safe_instruction", "unsafe_instruction")
        question = next((one[name] for name in names if one.get(name)), None)
        if question is None:
            raise BadRecordError(f"no instruction among {sorted(one)}")
        yield _preference(
            question_answer(question, require_field(one, "response", str)), media, lineage=lineage
        )


_FILES = (".json", ".jsonl", ".parquet")
_SCORES = ("rating", "rejected_rating")
DRESS = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=dress, scores=_SCORES)
LLAVA_RLHF = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=llava_rlhf, scores=_SCORES)
RLHF_V = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=rlhf_v, scores=_SCORES)
VLFEEDBACK = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlfeedback, scores=_SCORES)
VLGUARD = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlguard, scores=_SCORES)
FORMATS: Mapping[str, Format] = {
    "rlhf-v": RLHF_V,
    "llava-rlhf": LLAVA_RLHF,
    "dress": DRESS,
    "vlfeedback": VLFEEDBACK,
    "vlguard": VLGUARD,
}
