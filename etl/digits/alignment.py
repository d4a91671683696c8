"""Questions about what is there and what is not, with a wrong answer and a critique of it.

For RLHF (survey §3.2). A record is a pure function of (seed, medium, purpose, number), as in
`etl/digits/records.py`. Questions about what is not there are POPE's (Li et al. 2023,
arXiv:2305.10355): there, a model that answers them as if it was hallucinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from etl.digits import texts, tones
from etl.digits.scenes import COLOURS, POSITIONS, encode, random_scene, render
from etl.digits.texts import NUMBERS, Lookup, Question
from etl.digits.tones import MAX_TONES, random_dialling

YES, NO = "yes", "no"
"""`no` is the answer to every question about what is not there."""
ABSENT = ("not_there", "absent", "other_medium")
"""Kinds of questions about what is not there: whether it is, about one of its features, and what
only the other kind of medium could show."""

Purpose = Literal["captions", "easy", "preferences", "present", "absent"]
PURPOSES: tuple[Purpose, ...] = ("captions", "easy", "preferences", "present", "absent")

_STREAM = 20
_SPLITS = ("train", "validation", "test")
_ABSENT_SHARE = {"easy": 0.25, "preferences": 0.4, "present": 0.0, "absent": 1.0}
"""Purpose → the share of its questions that are about what is not there."""
_IS_THERE_SHARE = {"easy": 1 / 6, "preferences": 2 / 9, "present": 2 / 9}
"""Purpose → the share of its questions about what is there that ask whether it is.

So that in `easy` and `preferences` yes is the answer to that question as often as no, as in POPE.
Where no was more often, models that learnt from preferences denied nearly everything.
"""
_EASY_TURNS = (3, 5)  # questions of an easy dialogue, upper bound excluded
_IS_THERE = "Is there a {}"
_VALUES: Mapping[str, Sequence[str]] = {
    "digit": tuple(map(str, range(10))),
    "colour": tuple(COLOURS),
    "position": POSITIONS,
    "number": NUMBERS[1 : MAX_TONES + 2],  # one more, so that one is never there
}
"""Feature → its values."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A question with its answer, a wrong answer, and a critique of that."""

    question: Question
    rejected: str
    critique: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What questions about a kind of medium are made of.

    Args:
        number: keys the random numbers.
        random: takes a generator, a split and the greatest number of things.
        things: what there is in such a content.
        lookups: about one of the things.
        count: how many things there are.
        wording: describes a thing.
        name: of the medium, in a critique.
        caption: describes all things.
        encode: the file's content, and its suffix.
    """

    number: int
    random: Callable[[np.random.Generator, str, int], Any]
    things: Callable[[Any], Sequence[Any]]
    lookups: tuple[Lookup, ...]
    count: str
    wording: str
    name: str
    caption: Callable[[Any, np.random.Generator], str]
    encode: Callable[[Any], bytes]
    suffix: str


KINDS: Mapping[str, Kind] = {
    "image": Kind(
        number=0,
        random=random_scene,
        things=texts.marks_of,
        lookups=texts.LOOKUPS,
        count="How many digits are there",
        wording=texts.WORDINGS[0],
        name="picture",
        caption=texts.caption,
        encode=lambda scene: encode(render(scene), "image/png"),
        suffix=".png",
    ),
    "audio": Kind(
        number=1,
        random=random_dialling,
        things=texts.tones_of,
        lookups=texts.DIALLING_LOOKUPS,
        count="How many tones are there",
        wording=texts.DIALLING_WORDINGS[0],
        name="sound",
        caption=texts.dialling_caption,
        encode=lambda sound: tones.encode(tones.render(sound), "audio/wav"),
        suffix=".wav",
    ),
}
"""Kind of medium → what questions about it are made of."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of a medium, and a caption or questions about it."""

    content: Any
    caption: str = ""
    questions: tuple[Judged, ...] = ()


def record(seed: int, name: str, purpose: Purpose, number: int, split: str) -> Record:
    """Return the `number`-th record.

    Args:
        seed: of all random numbers.
        name: the kind of medium.
        purpose: `easy` is a dialogue about a single thing; the others ask one question about up to
            three things: `preferences` about what is there and what is not, `present` about the
            former and `absent` about the latter.
        number: of the record.
        split: of scans and telephones: `train`, `validation` or `test`.
    """
    kind = KINDS[name]
    part = _SPLITS.index(split)  # so that no scene repeats another split's
    rng = np.random.default_rng((seed, _STREAM, kind.number, PURPOSES.index(purpose), part, number))
    content = kind.random(rng, split, 1 if purpose == "easy" else MAX_TONES)
    if purpose == "captions":
        return Record(content=content, caption=kind.caption(content, rng))
    asked: dict[str, Judged] = {}
    wanted = int(rng.integers(*_EASY_TURNS)) if purpose == "easy" else 1
    while len(asked) < wanted:
        things = kind.things(content)
        if rng.random() < _ABSENT_SHARE[purpose]:
            one = _about_absent(kind, things, rng, others=purpose != "easy")
        else:
            one = _about_present(kind, things, rng, _IS_THERE_SHARE[purpose])
        asked.setdefault(one.question.text, one)
    return Record(content=content, questions=tuple(asked.values()))


def _about_present(
    kind: Kind, things: Sequence[Any], rng: np.random.Generator, is_there: float
) -> Judged:
    """Ask about one of the things, whether it is there (with a chance of `is_there`), or count."""
    thing = things[int(rng.integers(len(things)))]
    described = f"{NO}. {kind.wording.format(**vars(thing))}"
    if rng.random() < is_there:
        question = Question(kind="is_there", text=_IS_THERE.format(thing.digit), answer=YES)
        return Judged(question=question, rejected=NO, critique=described)
    which = int(rng.integers(len(kind.lookups) + 1))
    if which == len(kind.lookups):
        answer = NUMBERS[len(things)]
        return Judged(
            question=Question(kind="count", text=kind.count, answer=answer),
            rejected=_other(_VALUES["number"], answer, rng),
            critique=f"{NO}. there are {answer}.",
        )
    lookup = kind.lookups[which]
    question = lookup.about(thing)
    rejected = _mistaken(lookup, question.answer, things, rng)
    return Judged(question=question, rejected=rejected, critique=described)


def _mistaken(lookup: Lookup, answer: str, things: Sequence[Any], rng: np.random.Generator) -> str:
    """Return a wrong answer: what another thing has, that there is none, or something else."""
    nearby = [value for thing in things if (value := str(getattr(thing, lookup.asked))) != answer]
    chosen = rng.random()
    if nearby and chosen < 0.5:
        return nearby[int(rng.integers(len(nearby)))]
    return NO if chosen < 0.75 else _other(_VALUES[lookup.asked], answer, rng)


def _about_absent(
    kind: Kind, things: Sequence[Any], rng: np.random.Generator, *, others: bool
) -> Judged:
    """Ask about a thing that is not there, or with `others` of what the other medium would show."""
    which = int(rng.integers(3 if others else 2))
    if which == 2:
        (other,) = (one for one in KINDS.values() if one is not kind)
        lookup = other.lookups[int(rng.integers(len(other.lookups)))]
        given = _VALUES[lookup.given][int(rng.integers(len(_VALUES[lookup.given])))]
        return _denied("other_medium", lookup, given, things, rng, f"this is a {kind.name}.")
    lookup = kind.lookups[int(rng.integers(len(kind.lookups)))]
    name = lookup.given if which else "digit"
    there = {str(getattr(thing, name)) for thing in things}
    values = [value for value in _VALUES[name] if value not in there]
    given = values[int(rng.integers(len(values)))]
    if which == 0:
        question = Question(kind="not_there", text=_IS_THERE.format(given), answer=NO)
        return Judged(question=question, rejected=YES, critique=f"{NO}. there is no {given}.")
    return _denied(
        "absent", lookup, given, things, rng, f"there is no {_NAMED[name].format(given)}."
    )


_NAMED = {
    "digit": "{}",
    "colour": "{} digit",
    "position": "digit in the {}",
    "number": "tone {}",
}
"""Feature → what a thing with that value is called."""


def _denied(
    name: str,
    lookup: Lookup,
    given: str,
    things: Sequence[Any],
    rng: np.random.Generator,
    fact: str,
) -> Judged:
    """Return a question whose answer is that there is none; wrong is what a thing there has."""
    found = [str(getattr(thing, lookup.asked)) for thing in things if hasattr(thing, lookup.asked)]
    wrong = found or _VALUES[lookup.asked]
    return Judged(
        question=Question(kind=name, text=lookup.text.format(**{lookup.given: given}), answer=NO),
        rejected=wrong[int(rng.integers(len(wrong)))],
        critique=f"{NO}. {fact}",
    )


def _other(values: Sequence[str], answer: str, rng: np.random.Generator) -> str:
    others = [value for value in values if value != answer]
    return others[int(rng.integers(len(others)))]
