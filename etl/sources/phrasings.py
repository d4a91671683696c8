"""Instructions in the words of one system, for records whose parser says what is asked.

A parser that knows the task of a question sets `Record.asked`; what it writes itself is the
survey's template or Shikra's box format. MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478, §2.2) puts
a task identifier before the instruction, of which each task has several wordings (published in
Vision-CAIR/MiniGPT-4, minigpt4/datasets/datasets/*.py), and writes a box as `{<x><y><x><y>}` of
integers from 0 to 100, after the phrase that it belongs to: `<p>phrase</p> {<x><y><x><y>}`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from etl.sources.base import Asked, Format, Record
from etl.storage.schema import PLACEHOLDER_PATTERN, Turn

Phrasing = Literal["survey", "minigpt_v2"]

MINIGPT_V2: Mapping[str, Sequence[str]] = {
    "vqa": (
        "[vqa] {text}",
        "[vqa] Based on the image, respond to this question with a short answer: {text}",
    ),
    "options": (
        "{text} Choose from {options}.",
        "Q: {text} Multi Choices: {options} A: ",
        "Question: {text} Multi Choices: {options} Answer: ",
        "{text} Choose one from the following possible answers: {options}. ",
        "{text} Choose from {options}. The answer is",
    ),
    "refer": (
        "[refer] {text}",
        "[refer] give me the location of {text}",
        "[refer] where is {text} ?",
        "[refer] from this image, tell me the location of {text}",
        "[refer] the location of {text} is",
        "[refer] could you tell me the location for {text} ?",
        "[refer] where can I locate the {text} ?",
    ),
    "identify": (
        "[identify] {text}",
        "[identify] what object is in this location {text}",
        "[identify] identify the object present at this location {text}",
        "[identify] what is it in {text}",
        "[identify] describe this object in {text}",
        "[identify] this {text} is",
        "[identify] the object in {text} is",
    ),
    "grounding": (
        "[grounding] please describe this image in details",
        "[grounding] describe this image as detailed as possible",
        "[grounding] summarize this image in details",
        "[grounding] give a thorough description of what you see in this image",
    ),
    "dialogue": ("{text}",),
}
"""Task → wordings. `dialogue` has none: the question as it is, with regions in it."""

_NUMBER = r"-?\d+\.\d{3}"
_BOX = re.compile(rf"\[({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})\]")
"""A box as `etl.sources.boxes.box_text` writes it."""
_PHRASE = re.compile(rf"<ph_st>(.*?)<ph_ed>((?:{_BOX.pattern})*)")


def with_phrasing(fmt: Format, phrasing: Phrasing) -> Format:
    """A format whose instructions are in the words of a system."""
    if phrasing == "survey":
        return fmt
    return dataclasses.replace(fmt, parse=partial(_parse, fmt.parse))


def _parse(parse: Callable[[Any], Iterable[Record]], row: Any) -> Iterator[Record]:  # noqa: ANN401
    for record in parse(row):
        for one in (record, *_inverted(record)):
            yield _in_minigpt_v2(one)


def _inverted(record: Record) -> Iterator[Record]:
    """For a referring expression, the inverse task: what is in its box."""
    if [one.task for one in record.asked] != ["refer"]:
        return
    expression, box = record.asked[0].text, record.turns[-1].text
    yield dataclasses.replace(
        record,
        turns=(record.turns[0], Turn(role="assistant", text=expression)),
        asked=(Asked(task="identify", text=box),),
    )


def _in_minigpt_v2(record: Record) -> Record:
    """A record in MiniGPT-v2's words, or, if its task is not known, with its form of boxes."""
    asked = iter(record.asked)
    turns: list[Turn] = []
    answer: str | None = None
    for turn in record.turns:
        text = turn.text
        if turn.role == "user" and record.asked:
            now = next(asked)
            media = "".join(PLACEHOLDER_PATTERN.findall(text))
            text = f"{media} {_worded(now)}" if media else _worded(now)
            answer = now.answer
        elif turn.role == "assistant" and answer is not None:
            text = answer
        turns.append(Turn(role=turn.role, text=minigpt_v2_boxes(text)))
    return dataclasses.replace(record, turns=tuple(turns))


def _worded(asked: Asked) -> str:
    """A question in one of its task's wordings, chosen by a hash, whatever the input's order."""
    wordings = MINIGPT_V2[asked.task]
    key = asked.key or asked.text
    wording = wordings[hashlib.sha256(key.encode()).digest()[0] % len(wordings)]
    return wording.format(text=asked.text, options=", ".join(asked.options))


def minigpt_v2_boxes(text: str) -> str:
    """A text whose boxes, as Shikra writes them, are in MiniGPT-v2's form.

    A phrase between `<ph_st>` and `<ph_ed>` stands before its boxes; several are joined by
    `<delim>` (Vision-CAIR/MiniGPT-4, demo_v2.py).
    """

    def box(match: re.Match[str]) -> str:
        sides = (min(100, max(0, int(float(side) * 100))) for side in match.groups()[-4:])
        return "{" + "".join(f"<{side}>" for side in sides) + "}"

    def phrase(match: re.Match[str]) -> str:
        boxes = [box(one) for one in _BOX.finditer(match[2])]
        return f"<p>{match[1]}</p>" + (f" {'<delim>'.join(boxes)}" if boxes else "")

    return _BOX.sub(box, _PHRASE.sub(phrase, text))
