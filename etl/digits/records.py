"""Pairs, dialogues and questions about scenes of the digits world, each from its number.

A record is a pure function of (seed, kind, number), so any one can be generated alone, and the
first thousand are the same in a list of any length. Pairs and dialogues use training scans,
questions only held-out ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etl.digits.scenes import CANVAS, Scene, encode, random_scene, render
from etl.digits.texts import Question, caption, questions
from etl.storage.schema import Medium, Sample, Turn, sha256

VERSION = 2
"""Raise it when the same seed gives other files, so that existing lists are rendered again."""

_PAIR, _DIALOGUE, _QUESTION = range(3)
_TURNS = (3, 6)  # questions in a dialogue, upper bound excluded


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A scene and its caption."""

    scene: Scene
    caption: str


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A scene and the questions that are asked about it, in order."""

    scene: Scene
    questions: tuple[Question, ...]


def pair(seed: int, number: int) -> Pair:
    """The `number`-th captioned image, of training scans."""
    rng = np.random.default_rng((seed, _PAIR, number))
    scene = random_scene(rng, "train")
    return Pair(scene=scene, caption=caption(scene, rng))


def dialogue(seed: int, number: int) -> Dialogue:
    """The `number`-th dialogue of several questions, on training scans."""
    rng = np.random.default_rng((seed, _DIALOGUE, number))
    scene = random_scene(rng, "train")
    return Dialogue(scene=scene, questions=tuple(questions(scene, rng, int(rng.integers(*_TURNS)))))


def question(seed: int, number: int) -> Dialogue:
    """The `number`-th single question, on held-out scans."""
    rng = np.random.default_rng((seed, _QUESTION, number))
    scene = random_scene(rng, "held_out")
    return Dialogue(scene=scene, questions=tuple(questions(scene, rng, 1)))


def pair_turns(text: str) -> tuple[Turn, ...]:
    """The turns of an image-caption pair of any corpus."""
    return (Turn(role="user", text="<image>"), Turn(role="assistant", text=text))


def conversation(record: Dialogue) -> list[dict[str, str]]:
    """A dialogue in LLaVA's instruction format; the image precedes the first question."""
    turns = []
    for asked in record.questions:
        turns.append({"from": "human", "value": asked.text})
        turns.append({"from": "gpt", "value": asked.answer})
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return turns


def pair_sample(seed: int, number: int) -> Sample:
    """The sample of a pair, as an ETL job would write it."""
    record = pair(seed, number)
    return Sample(
        id=f"pair-{seed}-{number:06d}",
        source="digits",
        turns=pair_turns(record.caption),
        media=(medium_of(record.scene, "image/jpeg"),),
    )


def dialogue_sample(seed: int, number: int) -> Sample:
    """The sample of a dialogue, as an ETL job would write it."""
    return _dialogue_sample(f"dialogue-{seed}-{number:06d}", dialogue(seed, number))


def question_sample(seed: int, number: int) -> Sample:
    """The sample of a question, as an ETL job would write it."""
    return _dialogue_sample(f"question-{seed}-{number:06d}", question(seed, number))


def _dialogue_sample(sample_id: str, record: Dialogue) -> Sample:
    roles = {"human": "user", "gpt": "assistant"}
    turns = tuple(
        Turn(role=roles[turn["from"]], text=turn["value"]) for turn in conversation(record)
    )
    kinds = {asked.kind for asked in record.questions}
    return Sample(
        id=sample_id,
        source="digits",
        turns=turns,
        media=(medium_of(record.scene, "image/png"),),
        lineage={"kind": kinds.pop()} if len(kinds) == 1 else {},
    )


def medium_of(scene: Scene, mime: str) -> Medium:
    """Render a scene and encode it as `mime`."""
    data = encode(render(scene), mime)
    return Medium(
        kind="image", data=data, mime=mime, sha256=sha256(data), width=CANVAS, height=CANVAS
    )
