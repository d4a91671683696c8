"""Instructions in the words of one system, for records whose parser says what is asked.

A parser that knows the task of a question sets `Record.asked`; what it writes itself is the
survey's template or Shikra's box format. MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478, §2.2) puts
a task identifier before the instruction, of which each task has several wordings (published in
Vision-CAIR/MiniGPT-4, minigpt4/datasets/datasets/*.py), and writes a box as `{<x><y><x><y>}` of
integers from 0 to 100, after the phrase that it belongs to: `<p>phrase</p> {<x><y><x><y>}`.

Wordings may also be read from files, such as Shikra's (shikras/shikra,
config/_base_/dataset/template/*.json): lists of texts, in which `<expr>`, `<objs>` or `<question>`
is what is asked, and `<image>` the picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from etl.cli import UserError
from etl.sources.base import Asked, Format, Record, Task
from etl.sources.files import read_json
from etl.storage.schema import PLACEHOLDER_PATTERN, Turn

Phrasing = Literal["survey", "minigpt_v2"]
Wordings = Mapping[str, Sequence[str]]
"""Task → texts, of which each has `{text}` where it says what is asked, and may have `{options}`
and the placeholder of its medium, which otherwise comes first."""

_CAPTION = (
    "Briefly describe this image.",
    "Provide a concise depiction of this image.",
    "Present a short description of this image.",
    "Summarize this image in a few words.",
    "A short image caption:",
    "A short image description:",
    "A photo of ",
    "An image that shows ",
    "Write a short description for the image. ",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
"""Of minigpt4/datasets/datasets/caption_datasets.py, as above; most are InstructBLIP's."""

MINIGPT_V2: Wordings = {
    "caption": tuple(f"[caption] {text}" for text in _CAPTION),
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
    "detection": ("[detection] {text}",),
    "dialogue": ("{text}",),
}
"""`dialogue` has no words of its own: the question as it is, with regions in it."""

PHRASINGS: Mapping[Phrasing, Wordings] = {"survey": {}, "minigpt_v2": MINIGPT_V2}

_TEXT = re.compile(r"\{text\}|<expr>|<objs>|<question>")
_TEXTLESS = ("caption", "grounding")
_NUMBER = r"-?\d+\.\d{3}"
_BOX = re.compile(rf"\[({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})\]")
"""A box as `etl.sources.boxes.box_text` writes it."""
_PHRASE = re.compile(rf"<ph_st>(.*?)<ph_ed>((?:{_BOX.pattern})*)")


def with_phrasing(fmt: Format, phrasing: Phrasing, wordings: Wordings | None = None) -> Format:
    """A format whose instructions are in the words of a system.

    Args:
        fmt: whose parser says what is asked.
        phrasing: of the tasks, and the form of boxes.
        wordings: instead of those of the phrasing.
    """
    words = {**PHRASINGS[phrasing], **(wordings or {})}
    if not words:
        return fmt
    form = minigpt_v2_boxes if phrasing == "minigpt_v2" else without_marks
    return dataclasses.replace(fmt, parse=partial(_parse, fmt.parse, words, form))


def read_wordings(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read wordings, given as `task=file` of JSON lists; several files of a task are joined.

    Raises:
        UserError: an entry is not of that form, or a file no list of wordings of its task.
    """
    tasks = get_args(Task)
    found: dict[str, tuple[str, ...]] = {}
    for entry in files:
        task, _, file = entry.partition("=")
        if task not in tasks or not file:
            raise UserError(f"--wordings {entry}: want TASK=FILE, a task of {', '.join(tasks)}")
        if not Path(file).is_file():
            raise UserError(f"--wordings {entry}: no such file")
        texts = read_json(Path(file))
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise UserError(f"--wordings {entry}: want a JSON list of texts")
        for text in texts:
            if bool(_TEXT.search(text)) != (task not in _TEXTLESS):
                want = "none of" if task in _TEXTLESS else "one of"
                raise UserError(
                    f"--wordings {entry}: {text!r:.60}, want {want} {{text}}, <expr>, <objs>, "
                    "<question> in it"
                )
        found[task] = (*found.get(task, ()), *texts)
    return found


def _parse(
    parse: Callable[[Any], Iterable[Record]],
    words: Wordings,
    form: Callable[[str], str],
    row: Any,  # noqa: ANN401 - whatever the format's rows are
) -> Iterator[Record]:
    for record in parse(row):
        for one in (record, *_inverted(record), *_detected(record)):
            if one is record or one.asked[0].task in words:
                yield _in_words(one, words, form)


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


def _detected(record: Record) -> Iterator[Record]:
    """For a description with boxes, the boxes of each of its phrases."""
    if [one.task for one in record.asked] != ["grounding"]:
        return
    for found in _PHRASE.finditer(record.asked[0].answer or ""):
        if found[2]:
            yield dataclasses.replace(
                record,
                turns=(record.turns[0], Turn(role="assistant", text=without_marks(found[0]))),
                asked=(Asked(task="detection", text=found[1], answer=found[0]),),
            )


def _in_words(record: Record, words: Wordings, form: Callable[[str], str]) -> Record:
    """A record in other words, or, if its task is not known or has none, with its form of boxes."""
    caption = record.caption
    known = record.asked or ((Asked(task="caption", key=caption),) if caption is not None else ())
    asked = iter(known)
    turns: list[Turn] = []
    answer: str | None = None
    for turn in record.turns:
        text = turn.text
        if turn.role == "user" and known:
            now = next(asked)
            answer = None
            if now.task in words:
                text, answer = _worded(now, words[now.task], text), now.answer
        elif turn.role == "assistant" and answer is not None:
            text = answer
        turns.append(Turn(role=turn.role, text=form(text)))
    return dataclasses.replace(record, turns=tuple(turns))


def _worded(asked: Asked, wordings: Sequence[str], before: str) -> str:
    """A question in one of its task's wordings, chosen by a hash, whatever the input's order.

    Args:
        asked: the question.
        wordings: of its task.
        before: the turn as its parser has written it, which has the media.
    """
    key = asked.key or asked.text
    wording = wordings[hashlib.sha256(key.encode()).digest()[0] % len(wordings)]
    media = PLACEHOLDER_PATTERN.findall(before)
    placed = PLACEHOLDER_PATTERN.findall(wording)
    if placed and placed != media:  # a question about something else than one picture
        wording = " ".join(PLACEHOLDER_PATTERN.sub("", wording).split())
        placed = []
    text = wording.replace("{options}", ", ".join(asked.options))
    text = _TEXT.sub(lambda _: asked.text, text)
    return f"{''.join(media)} {text}" if media and not placed else text


def without_marks(text: str) -> str:
    """A text without `<ph_st>` and `<ph_ed>` around the phrases of its boxes."""
    return _PHRASE.sub(r"\1\2", text)


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
