"""Requests for pictures, sounds and videos of digits, with the media that fulfil them.

A request is a pure function of (seed, task, purpose, number), as records are. Held out are
combinations of a verb and a wording, combinations of the features asked for, and the scans and
telephones of the media that a request shows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from etl.digits import closeups, motion, tones
from etl.digits.closeups import random_closeup
from etl.digits.motion import DIRECTIONS
from etl.digits.scenes import COLOURS, POSITIONS, Mark, Scene, random_scan
from etl.digits.scenes import encode as encode_image
from etl.digits.scenes import render as render_scene
from etl.digits.texts import dialling_caption
from etl.digits.tones import Dialling

Purpose = Literal["captions", "requests", "held_out"]
PURPOSES: tuple[Purpose, ...] = ("captions", "requests", "held_out")
"""Captions of media to be generated (MM-PT), requests for training (MM-IT), and held-out ones."""

_STREAM = 20
_SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".mp4"}
_HELD_OUT = 5
"""One of so many combinations of features is held out."""

CAPTIONS: Mapping[str, str] = {
    "image": "a {colour} {digit}.",
    "audio": "one: {digit}.",
    "video": "a {colour} {digit} to the {direction}.",
}
"""Kind of medium → its caption, as the world's captions have it in their first wording."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of request.

    Args:
        shows: the medium that the request shows, or None.
        wants: the kind of medium that it asks for.
        verbs, wordings: any two of them make a request's text; those with the same index are held
            out.
    """

    shows: Literal["image", "audio"] | None
    wants: Literal["image", "audio", "video"]
    verbs: tuple[str, ...]
    wordings: tuple[str, ...]


_DRAW = ("draw", "paint", "sketch", "show")
_DIAL = ("dial", "play", "ring", "sound")

TASKS: Mapping[str, Task] = {
    "text_to_image": Task(
        shows=None,
        wants="image",
        verbs=_DRAW,
        wordings=(
            "a {colour} {digit}",
            "the {digit} in {colour}",
            "one {colour} {digit}",
            "in {colour} the {digit}",
        ),
    ),
    "text_to_audio": Task(
        shows=None,
        wants="audio",
        verbs=_DIAL,
        wordings=("a {digit}", "the {digit}", "one {digit}", "the digit {digit}"),
    ),
    "text_to_video": Task(
        shows=None,
        wants="video",
        verbs=("move", "film", "send", "slide"),
        wordings=(
            "a {colour} {digit} to the {direction}",
            "the {colour} {digit} {direction}",
            "to the {direction} a {colour} {digit}",
            "one {digit} in {colour} to the {direction}",
        ),
    ),
    "image_to_audio": Task(
        shows="image",
        wants="audio",
        verbs=_DIAL,
        wordings=("the digit you see", "this digit", "what you see", "the digit in the picture"),
    ),
    "audio_to_image": Task(
        shows="audio",
        wants="image",
        verbs=_DRAW,
        wordings=(
            "the digit you hear in {colour}",
            "this digit in {colour}",
            "what you hear in {colour}",
            "in {colour} the digit you hear",
        ),
    ),
    "image_text_to_image": Task(
        shows="image",
        wants="image",
        verbs=_DRAW,
        wordings=(
            "this digit, one more",
            "the digit you see, one more",
            "one more than this digit",
            "one more than you see",
        ),
    ),
}
"""Name → task."""


@dataclass(frozen=True, kw_only=True)
class File:
    """An encoded medium, and the name of its kind."""

    kind: str
    data: bytes

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        return _SUFFIXES[self.kind]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request and what fulfils it.

    Args:
        text: of the user, besides the medium shown.
        shown: None if the request is text alone.
        caption: of the medium asked for.
        features: of that medium: `digit`, and `colour` and `direction` where it has them.
        target: that medium; of a held-out request, one that would do.
    """

    text: str
    shown: File | None = None
    caption: str
    features: Mapping[str, str]
    target: File


def request(seed: int, task: str, number: int, *, held_out: bool) -> Request:
    """The `number`-th request of a task, for training or held out."""
    spec = TASKS[task]
    purpose = PURPOSES.index("held_out" if held_out else "requests")
    rng = np.random.default_rng((seed, _STREAM, list(TASKS).index(task), purpose, number))
    features = _random_features(rng, spec.wants, held_out=held_out)
    split = "held_out" if held_out else "train"
    shown = None
    if spec.shows == "image":
        more = task == "image_text_to_image"
        if more:
            features = _successor(rng)
        shown = _scene(rng, split, int(features["digit"]) - more, features.get("colour"))
    elif spec.shows == "audio":
        shown = _dialled(rng, split, int(features["digit"]))
    verb = int(rng.integers(len(spec.verbs)))
    others = [n for n in range(len(spec.wordings)) if n != verb]
    wording = spec.wordings[verb if held_out else int(rng.choice(others))]
    return Request(
        text=f"{spec.verbs[verb]} {wording.format(**features)}",
        shown=shown,
        caption=CAPTIONS[spec.wants].format(**features),
        features=features,
        target=_target(rng, split, spec.wants, features),
    )


def captioned(seed: int, kind: str, number: int) -> Request:
    """The `number`-th caption of a medium to be generated, of training features."""
    rng = np.random.default_rng((seed, _STREAM, len(TASKS) + list(CAPTIONS).index(kind), 0, number))
    features = _random_features(rng, kind, held_out=False)
    caption = CAPTIONS[kind].format(**features)
    target = _target(rng, "train", kind, features)
    return Request(text=caption, caption=caption, features=features, target=target)


def _random_features(rng: np.random.Generator, kind: str, *, held_out: bool) -> dict[str, str]:
    """Draw features whose combination is held out, or is not; all digits of a sound are trained."""
    while True:
        digit, colour, direction = (int(rng.integers(n)) for n in (10, len(COLOURS), 4))
        combination = digit + 2 * colour + (3 * direction if kind == "video" else 0)
        if kind == "audio":
            return {"digit": str(digit)}
        if (combination % _HELD_OUT == 0) == held_out:
            break
    features = {"digit": str(digit), "colour": list(COLOURS)[colour]}
    return features | ({"direction": list(DIRECTIONS)[direction]} if kind == "video" else {})


def _successor(rng: np.random.Generator) -> dict[str, str]:
    """Draw a digit that follows another.

    The colour is not asked for, so no combination with it is held out.
    """
    while True:
        features = _random_features(rng, "image", held_out=False)
        if features["digit"] != "0":
            return features


def _scene(rng: np.random.Generator, split: str, digit: int, colour: str | None) -> File:
    """Render a scene with one digit."""
    mark = Mark(
        digit=digit,
        colour=colour or str(rng.choice(list(COLOURS))),
        position=str(rng.choice(POSITIONS)),
        scan=random_scan(rng, split, digit),
    )
    image = render_scene(Scene(marks=(mark,), seed=int(rng.integers(2**32))))
    return File(kind="image", data=encode_image(image, "image/png"))


def _dialled(rng: np.random.Generator, split: str, digit: int) -> File:
    phone = int(rng.choice(tones.split(split)))
    sound = Dialling(digits=(digit,), phone=phone, seed=int(rng.integers(2**32)))
    return File(kind="audio", data=tones.encode(tones.render(sound), "audio/wav"))


def _target(rng: np.random.Generator, split: str, kind: str, features: Mapping[str, str]) -> File:
    digit = int(features["digit"])
    if kind == "audio":
        return File(kind=kind, data=tones.encode(tones.render_single(digit, rng), "audio/wav"))
    colour = features["colour"]
    if kind == "image":
        closeup = random_closeup(rng, split, digit=digit, colour=colour)
        return File(kind=kind, data=_png(closeups.render(closeup)))
    scan = random_scan(rng, split, digit)
    moving = replace(
        motion.random_motion(rng, split),
        digit=digit,
        colour=colour,
        direction=features["direction"],
        scan=scan,
        crossing=True,
    )
    return File(kind=kind, data=motion.encode(motion.render(moving)))


def _png(pixels_hw3: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_hw3).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def heard(seed: int, number: int) -> tuple[File, str]:
    """The `number`-th sound of a training telephone, one to three tones, and its caption."""
    rng = np.random.default_rng((seed, _STREAM, len(TASKS) + len(CAPTIONS), 0, number))
    sound = tones.random_dialling(rng, "train")
    data = tones.encode(tones.render(sound), "audio/wav")
    return File(kind="audio", data=data), dialling_caption(sound, rng)
