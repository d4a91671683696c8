"""Judges of generated media that are not ours, and that see nothing but the files.

A picture's digit is read by scikit-learn's SVC, trained on the training scans; a sound's by the two
highest peaks of its Fourier spectrum; the direction of a motion by the path of a centroid.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import SVC

from etl.cli import UserError, main, parse
from etl.digits import closeups, scenes
from etl.digits.closeups import Closeup
from etl.digits.generation import TASKS
from etl.digits.motion import DIRECTIONS
from etl.digits.scenes import COLOURS
from etl.digits.tones import KEYS
from etl.storage.atomic import write_json
from etl.storage.schema import Medium, Sample
from etl.storage.shards import ShardSet

_REPLIES = "replies.jsonl"
_SIDE = 8  # pixels, as the scans have
_PICTURES_PER_SCAN = 3
_NOISE = 40.0  # of 255; a picture with less contrast shows nothing
_INK = 0.3  # of the highest contrast
_FOURIER = 1 << 16
_PEAK_WIDTH = 40.0  # Hz
_TOLERANCE = 0.035  # of a frequency, beyond which a receiver must not accept it (ITU-T Q.24)


def digit_of_picture(data: bytes) -> int | None:
    """Return the digit that an encoded picture shows; None if it shows nothing."""
    glyph_n = _glyph(_pixels(data))
    return None if glyph_n is None else int(_classifier().predict(glyph_n[None])[0])


def colour_of_picture(data: bytes) -> str | None:
    """Return the name of the colour nearest to that of an encoded picture's ink."""
    pixels_hw3 = _pixels(data)
    contrast_hw = _contrast(pixels_hw3)
    if contrast_hw is None:
        return None
    ink_3 = pixels_hw3[contrast_hw >= np.quantile(contrast_hw, 0.95)].mean(axis=0)
    shades = np.array(list(COLOURS.values()), dtype=np.float32)
    cosines = shades @ ink_3 / np.linalg.norm(shades, axis=1) / np.linalg.norm(ink_3)
    return list(COLOURS)[int(cosines.argmax())]


def digit_of_sound(data: bytes) -> int | None:
    """Return the digit whose two frequencies are the peaks of an encoded sound's spectrum.

    None if there is no such digit (ITU-T Q.23).
    """
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    wave_t = wave.mean(axis=1)
    spectrum_k = np.abs(np.fft.rfft(wave_t * np.hanning(len(wave_t)), _FOURIER))
    hertz_k = np.fft.rfftfreq(_FOURIER, 1 / rate)
    peaks = []
    for _ in range(2):
        peak = hertz_k[int(spectrum_k.argmax())]
        peaks.append(peak)
        spectrum_k[np.abs(hertz_k - peak) < _PEAK_WIDTH] = 0
    errors = np.abs(np.sort(peaks) / np.array(KEYS) - 1).max(axis=1)
    return int(errors.argmin()) if errors.min() < _TOLERANCE else None


def direction_of_video(data: bytes) -> str | None:
    """Return the direction in which the ink moves from a video's first third to its last.

    None if it does not move, or if there is nothing to see.
    """
    path = [_centroid(frame_hw3) for frame_hw3 in _frames(data)]
    seen = np.array([point for point in path if point is not None])
    third = max(1, len(seen) // 3)
    if len(seen) < 2:
        return None
    step = seen[-third:].mean(axis=0) - seen[:third].mean(axis=0)
    if np.abs(step).max() < 1:
        return None
    along = [float(step @ direction) for direction in np.array(list(DIRECTIONS.values()))]
    return list(DIRECTIONS)[int(np.argmax(along))]


def _pixels(data: bytes) -> NDArray[np.float32]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


def _frames(data: bytes) -> list[NDArray[np.float32]]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frame.astype(np.float32) for frame in frames]


def _contrast(pixels_hw3: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return how much each pixel (h, w) differs from the background, from 0 to 1."""
    background_3 = np.median(pixels_hw3.reshape(-1, 3), axis=0)
    contrast_hw: NDArray[np.float32] = np.abs(pixels_hw3 - background_3).max(axis=-1)
    highest = contrast_hw.max()
    return contrast_hw / highest if highest > _NOISE else None


def _glyph(pixels_hw3: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the ink's square as a scan (64,) has it."""
    contrast_hw = _contrast(pixels_hw3)
    if contrast_hw is None:
        return None
    ink_hw = contrast_hw > _INK
    (top, bottom), (left, right) = (
        np.flatnonzero(ink_hw.any(axis=axis))[[0, -1]] + (0, 1) for axis in (1, 0)
    )
    half = max(bottom - top, right - left) / 2
    row, column = (top + bottom) / 2, (left + right) / 2
    box = (column - half, row - half, column + half, row + half)
    sides = (2 * _SIDE, 2 * _SIDE)
    square = Image.fromarray(contrast_hw).transform(
        sides, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
    )
    small = square.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small).ravel()


def _centroid(pixels_hw3: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return row and column of the ink's centre."""
    contrast_hw = _contrast(pixels_hw3)
    if contrast_hw is None:
        return None
    weights_hw = np.where(contrast_hw > _INK, contrast_hw, 0)
    rows, columns = np.indices(weights_hw.shape)
    return np.array([(weights_hw * rows).sum(), (weights_hw * columns).sum()]) / weights_hw.sum()


@functools.cache
def _classifier() -> SVC:
    """Train on pictures of all training scans."""
    rng = np.random.default_rng(0)
    glyphs, digits = [], []
    for scan in scenes.split("train"):
        digit = int(scenes.scans()[1][scan])
        for colour in rng.choice(list(COLOURS), _PICTURES_PER_SCAN):
            seed = int(rng.integers(2**32))
            shown = Closeup(digit=digit, colour=str(colour), scan=int(scan), seed=seed)
            glyphs.append(_glyph(closeups.render(shown).astype(np.float32)))
            digits.append(digit)
    return SVC(C=10).fit(np.array(glyphs), np.array(digits))


def judge(kind: str, data: bytes, features: Mapping[str, str]) -> dict[str, bool]:
    """Return which of the features asked for a medium shows.

    Args:
        kind: of the medium.
        data: the content of its file.
        features: `digit`, `colour` and `direction`, as far as they were asked for. The digit in a
            video is too small to be read.
    """
    if kind == "audio":
        return {"digit": digit_of_sound(data) == int(features["digit"])}
    if kind == "video":
        return {"direction": direction_of_video(data) == features["direction"]}
    shown = {"digit": digit_of_picture(data) == int(features["digit"])}
    if "colour" in features:
        shown["colour"] = colour_of_picture(data) == features["colour"]
    return shown


class Answer(Protocol):
    """An answer to a request, as rewards get it (`pipeline.train.rewards`)."""

    @property
    def sample(self) -> Sample:
        """The request."""

    @property
    def media(self) -> Sequence[Medium]:
        """The media of the answer."""


def fulfilled(answer: Answer) -> float:
    """Return 1 if an answer's medium shows all that was asked for, else 0: a reward of GRPO.

    Raises:
        ValueError: the sample is no request for a medium.
    """
    features = answer.sample.lineage
    if features.get("task") not in TASKS:
        raise ValueError(
            "is no request of the digits world, want requests as etl.digits lists them"
        )
    media = [(medium.kind, medium.data) for medium in answer.media]
    return float(all(_shown(media, features["task"], features).values()))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Judge the media of replies to requests; writes scores.json next to them, by task.

    A reply is correct if its medium shows all that was asked for; one without a medium of the kind
    that was asked for is wrong. Without --replies, the requests' own media are judged: what the
    judges say of real ones.
    """

    requests: Path
    """Shards of requests, as the ETL writes them."""
    replies: Path | None = None
    """Folder with replies.jsonl and media, as `python -m pipeline generate` writes it."""


def run(args: Sequence[str]) -> None:
    """Run the command with command-line arguments."""
    options = parse(Options, prog="python -m etl.digits.judges", args=args)
    replies = None if options.replies is None else _read(options.replies)
    found: dict[str, list[dict[str, bool]]] = {task: [] for task in TASKS}
    requests = ShardSet([options.requests])
    for number in range(len(requests)):
        sample = requests[number]
        if replies is None:
            media = [(sample.media[-1].kind, sample.media[-1].data)]
        elif sample.id in replies:
            media = replies[sample.id]
        else:
            raise UserError(f"{options.replies}/{_REPLIES}: no reply to {sample.id}")
        task = sample.lineage["task"]
        found[task].append(_shown(media, task, sample.lineage))
    scores = {task: _scores(shown) for task, shown in found.items() if shown}
    if options.replies is not None:
        write_json(options.replies / "scores.json", scores)
    sys.stdout.write(json.dumps(scores) + "\n")


def _read(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Return kinds and files of the media of each reply, by its id."""
    replies = map(json.loads, (folder / _REPLIES).read_text().splitlines())
    return {
        reply["id"]: [(one["kind"], (folder / one["file"]).read_bytes()) for one in reply["media"]]
        for reply in replies
    }


def _shown(
    media: Sequence[tuple[str, bytes]], task: str, features: Mapping[str, str]
) -> dict[str, bool]:
    """Return which of the features asked for the first medium of the right kind shows."""
    wants, wordings = TASKS[task].wants, TASKS[task].wordings
    asked = {"digit": features["digit"]}
    for name in ("colour", "direction"):
        if f"{{{name}}}" in wordings[0]:
            asked[name] = features[name]
    for kind, data in media:
        if kind == wants:
            return judge(kind, data, asked)
    return {"medium": False}


def _scores(shown: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in shown for name in one if name != "medium")
    count = len(shown)
    features = {name: sum(one.get(name, False) for one in shown) / count for name in names}
    right = sum(all(one.values()) for one in shown) / count
    return {"requests": count, "judged": right, **features}


if __name__ == "__main__":
    main(run)
