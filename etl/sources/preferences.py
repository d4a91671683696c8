"""Preferences and written feedback: the better answer in the turns, the other in `rejected`.

`rejected` is what the assistant said otherwise, `feedback` what a person or judge said of it.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.sources.base import BadRecordError, Format, Record, Ref, take, texts
from etl.sources.dialogues import asked, names_in, placed, speech
from etl.sources.files import parquet_or_json_rows
from etl.storage.schema import Turn


def _media(image: Any) -> tuple[Ref, ...]:  # noqa: ANN401
    """A picture by name or URL, or with its bytes, as Hugging Face's parquet files have it."""
    if isinstance(image, dict) and image.get("bytes"):
        coded = base64.b64encode(image["bytes"]).decode()
        return (Ref(kind="image", url=f"data:image/jpeg;base64,{coded}"),)
    if isinstance(image, dict):
        image = image.get("path")
    return tuple(Ref(kind="image", url=name) for name in names_in(image, "image"))


def _preferred(
    turns: Sequence[Turn],
    media: Sequence[Ref],
    *,
    rejected: str | None = None,
    feedback: Sequence[str] = (),
    scores: Mapping[str, float | None] | None = None,
    lineage: Mapping[str, str] | None = None,
) -> Record:
    made = placed(turns, media)
    return Record(
        turns=made.turns,
        media=made.media,
        rejected=() if rejected is None else (Turn(role="assistant", text=rejected),),
        feedback=tuple(Turn(role="user", text=text) for text in feedback if text),
        scores=scores or {},
        lineage=lineage or {},
    )


def dress(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """DRESS (LVLM_NLF): `{image_id, interaction: [{user, model, rating, critique_NLF, …}]}`.

    Each answer that was answered anew is a pair: the next one, against it, with its critique and
    refinement advice as feedback. An only answer stays with its critique and nothing rejected.
    """
    media = _media(take(record, "image_id", str))
    talk = take(record, "interaction", list)
    if not talk:
        raise BadRecordError("an interaction without turns")
    question = take(talk[0], "user", str)
    pairs = list(itertools.pairwise(talk)) or [(None, talk[0])]
    for before, after in pairs:
        judged = before or after
        notes = [str(judged.get(f"{kind}_NLF") or "") for kind in ("critique", "refinement")]
        yield _preferred(
            asked(question, take(after, "model", str)),
            media,
            rejected=take(before, "model", str) if before else None,
            feedback=notes,
            scores={"rating": _rating(judged.get("rating"))},
        )


def _rating(value: Any) -> float | None:  # noqa: ANN401
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None  # "N/A"


def llava_rlhf(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """LLaVA-RLHF: `{image, conversations, output_1, output_2, preference: 1 | 2}`."""
    outputs = [take(take(record, name), "value", str) for name in ("output_1", "output_2")]
    preference = take(record, "preference")
    if preference not in (1, 2):
        raise BadRecordError(f"preference is {preference!r}, want 1 or 2")
    turns = (
        *speech(take(record, "conversations", list)),
        Turn(role="assistant", text=outputs[preference - 1]),
    )
    other = outputs[2 - preference]
    yield _preferred(turns, _media(record.get("image")), rejected=other)


def rlhf_v(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """RLHF-V: `{image, text: {question, chosen, rejected}}`, the text as JSON within; or flat."""
    said = record.get("text", record) if isinstance(record, dict) else record
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError:
            raise BadRecordError("its text is not JSON") from None
    question = take(said, "prompt" if "prompt" in said else "question", str)
    turns = asked(question, take(said, "chosen", str))
    lineage = texts({} if said is record else record, "text", "image")
    yield _preferred(
        turns, _media(record.get("image")), rejected=take(said, "rejected", str), lineage=lineage
    )


def vlfeedback(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLFeedback: `{prompt, image, completions: [{response, annotations: {aspect: {Rating}}}]}`.

    The best by mean rating against the worst; the worst's rationales are the feedback.
    """
    image = record.get("image") or record.get("img_path") if isinstance(record, dict) else None
    rated: list[tuple[float, Any]] = []
    for completion in take(record, "completions", list):
        aspects = take(completion, "annotations", dict).values()
        ratings = [_rating(aspect.get("Rating")) for aspect in aspects]
        known = [rating for rating in ratings if rating is not None]
        if known:
            rated.append((sum(known) / len(known), completion))
    rated.sort(key=lambda one: one[0])
    if not rated or rated[0][0] == rated[-1][0]:
        raise BadRecordError("no answer is better than another")
    worst, best = rated[0], rated[-1]
    reasons = [str(one.get("Rationale") or "") for one in worst[1]["annotations"].values()]
    yield _preferred(
        asked(take(record, "prompt", str), take(best[1], "response", str)),
        _media(image),
        rejected=take(worst[1], "response", str),
        feedback=reasons,
        scores={"rating": best[0], "rejected_rating": worst[0]},
    )


def vlguard(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VLGuard: `{image, safe, instr-resp: [{instruction, response}]}`; nothing is rejected."""
    media = _media(take(record, "image", str))
    lineage = texts(record, "image", "instr-resp", "id")
    for one in take(record, "instr-resp", list):
        names = ("instruction", "safe_instruction", "unsafe_instruction")
        question = next((one[name] for name in names if one.get(name)), None)
        if question is None:
            raise BadRecordError(f"no instruction among {sorted(one)}")
        yield _preferred(asked(question, take(one, "response", str)), media, lineage=lineage)


_FILES = (".json", ".jsonl", ".parquet")
_SCORES = ("rating", "rejected_rating")
DRESS = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=dress, scores=_SCORES)
LLAVA_RLHF = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=llava_rlhf, scores=_SCORES)
RLHF_V = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=rlhf_v, scores=_SCORES)
VLFEEDBACK = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlfeedback, scores=_SCORES)
VLGUARD = Format(suffixes=_FILES, rows=parquet_or_json_rows, parse=vlguard, scores=_SCORES)
