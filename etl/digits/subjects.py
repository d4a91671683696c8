"""Videos, sounds, 3D objects and mixtures of the digits world as samples, each from its number.

As in `etl/digits/records.py`, a sample is a pure function of (seed, kind, number). Captions and
dialogues use training scans and telephones, questions only held-out ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from etl.digits import motion, solids, texts, tones
from etl.digits.motion import Motion
from etl.digits.records import dialogue_sample, medium_of, pair_sample, question_sample
from etl.digits.scenes import CANVAS, Scene, random_scene
from etl.digits.solids import Solid
from etl.digits.tones import Dialling
from etl.storage.schema import PLACEHOLDERS, Medium, Sample, Turn, sha256

Purpose = Literal["captions", "dialogues", "questions"]
PURPOSES: tuple[Purpose, ...] = ("captions", "dialogues", "questions")

SampleFactory = Callable[[int, int], Sample]
"""Maps a seed and a number to a sample."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What samples are about; the other functions take what `random` returns.

    Args:
        stream: keys the random numbers; no two subjects share one.
        random: takes a generator and the split `train` or `held_out`.
        media: renders the media.
        caption: None if the subject has no captions.
        questions: a dialogue asks all of them, or all but one, in random order.
    """

    stream: int
    random: Callable[[np.random.Generator, str], Any]
    media: Callable[[Any], tuple[Medium, ...]]
    caption: Callable[[Any, np.random.Generator], str] | None
    questions: tuple[Callable[[Any, np.random.Generator], texts.Question], ...]


def _video(subject: Motion) -> tuple[Medium, ...]:
    data = motion.encode(motion.render(subject))
    return (
        Medium(
            kind="video",
            data=data,
            mime="video/mp4",
            sha256=sha256(data),
            width=CANVAS,
            height=CANVAS,
            frames=subject.frames,
            duration=subject.frames / motion.FRAMES_PER_SECOND,
        ),
    )


def _audio(subject: Dialling) -> tuple[Medium, ...]:
    wave = tones.render(subject)
    mime = ("audio/wav", "audio/flac")[subject.seed % 2]
    data = tones.encode(wave, mime)
    return (
        Medium(
            kind="audio",
            data=data,
            mime=mime,
            sha256=sha256(data),
            duration=len(wave) / tones.SAMPLE_RATE,
            sample_rate=tones.SAMPLE_RATE,
        ),
    )


def _points(subject: Solid) -> tuple[Medium, ...]:
    data = solids.encode(solids.render(subject))
    return (
        Medium(
            kind="points",
            data=data,
            mime="application/x-npy",
            sha256=sha256(data),
            points=solids.POINTS,
        ),
    )


def _image(scene: Scene) -> Medium:
    return medium_of(scene, "image/png")


def _random_scene_and_sound(rng: np.random.Generator, split_name: str) -> texts.SceneAndSound:
    scene = random_scene(rng, split_name)
    mark = scene.marks[int(rng.integers(len(scene.marks)))]
    dialling = Dialling(
        digits=(mark.digit,),
        phone=int(rng.choice(tones.split(split_name))),
        seed=int(rng.integers(2**32)),
    )
    return texts.SceneAndSound(scene=scene, dialling=dialling)


def _random_two_scenes(rng: np.random.Generator, split_name: str) -> texts.TwoScenes:
    while True:
        first, second = random_scene(rng, split_name), random_scene(rng, split_name)
        shared = {m.digit for m in first.marks} & {m.digit for m in second.marks}
        if len(shared) == 1:
            return texts.TwoScenes(scenes=(first, second))


SUBJECTS: Mapping[str, Subject] = {
    "video": Subject(
        stream=10,
        random=motion.random_motion,
        media=_video,
        caption=texts.motion_caption,
        questions=texts.MOTION_QUESTIONS,
    ),
    "audio": Subject(
        stream=11,
        random=tones.random_dialling,
        media=_audio,
        caption=texts.dialling_caption,
        questions=texts.DIALLING_QUESTIONS,
    ),
    "points": Subject(
        stream=12,
        random=solids.random_solid,
        media=_points,
        caption=texts.solid_caption,
        questions=texts.SOLID_QUESTIONS,
    ),
    "image_audio": Subject(
        stream=13,
        random=_random_scene_and_sound,
        media=lambda both: (_image(both.scene), *_audio(both.dialling)),
        caption=None,
        questions=texts.SCENE_AND_SOUND_QUESTIONS,
    ),
    "two_images": Subject(
        stream=14,
        random=_random_two_scenes,
        media=lambda two: tuple(map(_image, two.scenes)),
        caption=None,
        questions=texts.TWO_SCENES_QUESTIONS,
    ),
}
"""Name → subject, besides single images."""


def sample(name: str, purpose: Purpose, seed: int, number: int) -> Sample:
    """Return the `number`-th sample about a subject.

    Raises:
        ValueError: captions of a subject that has none.
    """
    subject = SUBJECTS[name]
    rng = np.random.default_rng((seed, subject.stream, PURPOSES.index(purpose), number))
    content = subject.random(rng, "held_out" if purpose == "questions" else "train")
    media = subject.media(content)
    head = "".join(PLACEHOLDERS[medium.kind] for medium in media)
    lineage = {}
    if purpose == "captions":
        if subject.caption is None:
            raise ValueError(f"{name} has no captions")
        turns = [Turn(role="user", text=head)]
        turns.append(Turn(role="assistant", text=subject.caption(content, rng)))
    else:
        available = len(subject.questions)
        count = int(rng.integers(available - 1, available + 1)) if purpose == "dialogues" else 1
        questions = texts.ask(subject.questions, content, rng, count)
        turns = [turn for question in questions for turn in _turns(question)]
        turns[0] = Turn(role="user", text=f"{head}\n{turns[0].text}")
        if count == 1:
            lineage = {"kind": questions[0].kind}
    return Sample(
        id=f"{name}-{purpose}-{seed}-{number:06d}",
        source="digits",
        turns=tuple(turns),
        media=media,
        lineage=lineage,
    )


def _turns(question: texts.Question) -> tuple[Turn, Turn]:
    return (
        Turn(role="user", text=question.text),
        Turn(role="assistant", text=question.answer),
    )


def sample_factories(name: str) -> Mapping[Purpose, SampleFactory]:
    """Return the factories of the samples about `image` or a subject, by purpose."""
    if name == "image":
        return {
            "captions": pair_sample,
            "dialogues": dialogue_sample,
            "questions": question_sample,
        }
    return {
        purpose: functools.partial(sample, name, purpose)
        for purpose in PURPOSES
        if purpose != "captions" or SUBJECTS[name].caption is not None
    }


NAMES = ("image", *SUBJECTS)
"""The names that `sample_factories` takes."""
