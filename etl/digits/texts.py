"""Captions, questions and answers about the subjects of the digits world.

docs/digits.md explains how questions are worded, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from etl.digits.motion import Motion
from etl.digits.scenes import Mark, Scene
from etl.digits.solids import Solid
from etl.digits.tones import Dialling

Subject = TypeVar("Subject")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a subject, its exact answer, and the kind of question."""

    kind: str
    text: str
    answer: str


WORDINGS = (
    "a {colour} {digit} in the {position}.",
    "{position}: {colour} {digit}.",
    "the {digit} in the {position} is {colour}.",
)
"""How one mark is described; each wording begins with another one of its three features."""


def describe(mark: Mark, wording: int) -> str:
    """Describe one mark in a sentence."""
    return WORDINGS[wording].format(**vars(mark))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe every mark of a scene in reading order, in one wording throughout."""
    wording = int(rng.integers(len(WORDINGS)))
    return " ".join(describe(mark, wording) for mark in scene.marks)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A question for one feature of a thing, given another one, which nothing else there has.

    Args:
        kind: of question.
        text: ends with the given feature, whose name is in braces.
        asked, given: the features' names.
    """

    kind: str
    text: str
    asked: str
    given: str

    def about(self, thing: Mark | Tone) -> Question:
        """Ask about a thing."""
        return Question(
            kind=self.kind,
            text=self.text.format(**vars(thing)),
            answer=str(getattr(thing, self.asked)),
        )


LOOKUPS = (
    Lookup(
        kind="digit_at", text="Which digit is in the {position}", asked="digit", given="position"
    ),
    Lookup(kind="digit_of_colour", text="Which digit is {colour}", asked="digit", given="colour"),
    Lookup(kind="colour_of", text="What colour is the {digit}", asked="colour", given="digit"),
    Lookup(
        kind="colour_at",
        text="What colour is the digit in the {position}",
        asked="colour",
        given="position",
    ),
    Lookup(kind="place_of", text="Where is the {digit}", asked="position", given="digit"),
)
"""The questions about a mark of a scene."""


def _asking(
    lookup: Lookup, things: Callable[[Subject], Sequence[Mark | Tone]]
) -> Callable[[Subject, np.random.Generator], Question]:
    """Return a function that asks about one of a subject's things."""

    def make(subject: Subject, rng: np.random.Generator) -> Question:
        found = things(subject)
        return lookup.about(found[int(rng.integers(len(found)))])

    return make


def marks_of(scene: Scene) -> tuple[Mark, ...]:
    """Return what is in a scene."""
    return scene.marks


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    return Question(
        kind="count", text="How many digits are there", answer=NUMBERS[len(scene.marks)]
    )


def _sum(scene: Scene, rng: np.random.Generator) -> Question:
    total = sum(mark.digit for mark in scene.marks)
    return Question(kind="sum", text="What is the sum of the digits", answer=str(total))


QUESTION_MAKERS: tuple[Callable[[Scene, np.random.Generator], Question], ...] = (
    *(_asking(lookup, marks_of) for lookup in LOOKUPS),
    _count,
    _sum,
)


def questions(scene: Scene, rng: np.random.Generator, number: int) -> list[Question]:
    """Ask `number` questions of different kinds about a scene."""
    return ask(QUESTION_MAKERS, scene, rng, number)


def ask(
    makers: Sequence[Callable[[Subject, np.random.Generator], Question]],
    subject: Subject,
    rng: np.random.Generator,
    number: int,
) -> list[Question]:
    """Ask `number` questions of different kinds about a subject."""
    kinds = rng.choice(len(makers), size=number, replace=False)
    return [makers[kind](subject, rng) for kind in kinds]


MOTION_WORDINGS = (
    "a {colour} {digit} to the {direction}.",
    "{direction}: {colour} {digit}.",
    "the {digit} to the {direction} is {colour}.",
)


def motion_caption(motion: Motion, rng: np.random.Generator) -> str:
    """Describe what moves, and in which direction."""
    return MOTION_WORDINGS[int(rng.integers(len(MOTION_WORDINGS)))].format(**vars(motion))


def _digit_shown(shown: Motion | Solid, _: np.random.Generator) -> Question:
    return Question(kind="digit", text="What is the digit", answer=str(shown.digit))


def _colour_shown(shown: Motion | Solid, _: np.random.Generator) -> Question:
    return Question(kind="colour", text="What is the colour", answer=shown.colour)


def _direction(motion: Motion, _: np.random.Generator) -> Question:
    return Question(kind="direction", text="What is the direction", answer=motion.direction)


MOTION_QUESTIONS: tuple[Callable[[Motion, np.random.Generator], Question], ...] = (
    _digit_shown,
    _colour_shown,
    _direction,
)

SOLID_WORDINGS = ("a {colour} {digit}.", "the {digit} is {colour}.")


def solid_caption(solid: Solid, rng: np.random.Generator) -> str:
    """Describe an object."""
    return SOLID_WORDINGS[int(rng.integers(len(SOLID_WORDINGS)))].format(**vars(solid))


SOLID_QUESTIONS: tuple[Callable[[Solid, np.random.Generator], Question], ...] = (
    _digit_shown,
    _colour_shown,
)

DIALLING_WORDINGS = ("{number}: {digit}.", "the {digit} is {number}.")


def dialling_caption(dialling: Dialling, rng: np.random.Generator) -> str:
    """Describe every tone's number and digit, in order."""
    wording = DIALLING_WORDINGS[int(rng.integers(len(DIALLING_WORDINGS)))]
    return " ".join(wording.format(**vars(tone)) for tone in tones_of(dialling))


@dataclass(frozen=True, kw_only=True)
class Tone:
    """A dialled digit, and the word for its number in the order of dialling."""

    digit: int
    number: str


def tones_of(dialling: Dialling) -> tuple[Tone, ...]:
    """Return what can be heard in a sound."""
    return tuple(
        Tone(digit=digit, number=NUMBERS[index])
        for index, digit in enumerate(dialling.digits, start=1)
    )


DIALLING_LOOKUPS = (
    Lookup(
        kind="digit_dialled", text="Which digit is tone {number}", asked="digit", given="number"
    ),
    Lookup(kind="turn_of", text="Which tone is the {digit}", asked="number", given="digit"),
)
"""The questions about a tone of a sound."""


def _tones(dialling: Dialling, _: np.random.Generator) -> Question:
    return Question(
        kind="tones", text="How many tones are there", answer=NUMBERS[len(dialling.digits)]
    )


DIALLING_QUESTIONS: tuple[Callable[[Dialling, np.random.Generator], Question], ...] = (
    *(_asking(lookup, tones_of) for lookup in DIALLING_LOOKUPS),
    _tones,
)


@dataclass(frozen=True, kw_only=True)
class SceneAndSound:
    """A scene, and the sound of one of its digits being dialled."""

    scene: Scene
    dialling: Dialling

    @property
    def mark(self) -> Mark:
        """The mark of the dialled digit."""
        return next(mark for mark in self.scene.marks if mark.digit in self.dialling.digits)


def _colour_dialled(both: SceneAndSound, _: np.random.Generator) -> Question:
    return Question(
        kind="colour_dialled", text="What colour is the dialled digit", answer=both.mark.colour
    )


def _position_dialled(both: SceneAndSound, _: np.random.Generator) -> Question:
    return Question(
        kind="place_dialled", text="Where is the dialled digit", answer=both.mark.position
    )


SCENE_AND_SOUND_QUESTIONS: tuple[Callable[[SceneAndSound, np.random.Generator], Question], ...] = (
    _colour_dialled,
    _position_dialled,
)


@dataclass(frozen=True, kw_only=True)
class TwoScenes:
    """Two scenes that have exactly one digit in common."""

    scenes: tuple[Scene, Scene]


def _digit_in_both(two: TwoScenes, _: np.random.Generator) -> Question:
    first, second = ({mark.digit for mark in scene.marks} for scene in two.scenes)
    return Question(
        kind="digit_in_both", text="Which digit is in both", answer=str(*(first & second))
    )


def _fuller(two: TwoScenes, _: np.random.Generator) -> Question:
    counts = [len(scene.marks) for scene in two.scenes]
    answer = "both" if counts[0] == counts[1] else NUMBERS[counts.index(max(counts)) + 1]
    return Question(kind="fuller", text="Which picture shows the most digits", answer=answer)


TWO_SCENES_QUESTIONS: tuple[Callable[[TwoScenes, np.random.Generator], Question], ...] = (
    _digit_in_both,
    _fuller,
)
