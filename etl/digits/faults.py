"""The rows of the LAION-style list: valid pairs, and planted faults as they occur on the web."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from etl.digits.records import pair
from etl.digits.scenes import CANVAS

SMALL = 24
"""Width and height of the images that are planted as too small, in pixels."""

_ORDER_STREAM = 9


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """How much of the digits world to write, and its seed.

    `captions` counts the valid pairs; faulty rows are added to them. `others` counts the valid rows
    of each of the lists of videos, sounds, clouds and documents, `requests` those of each task of
    `etl/digits/generation.py`, `preferences` those about each kind of medium of
    `etl/digits/alignment.py`.
    """

    captions: int
    dialogues: int
    questions: int
    seed: int
    others: int = 0
    requests: int = 0
    preferences: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of row that a job must drop: how many per valid pair, and the drop reason."""

    share: float
    reason: str


FAULTS: Mapping[str, Fault] = {
    "dead_link": Fault(share=0.02, reason="http_404"),
    "html_page": Fault(share=0.01, reason="wrong_type"),
    "truncated": Fault(share=0.01, reason="truncated"),
    "duplicate_image": Fault(share=0.02, reason="duplicate_medium"),
    "repeated_url": Fault(share=0.02, reason="duplicate_url"),
    "short_caption": Fault(share=0.01, reason="caption_too_short"),
    "unsafe": Fault(share=0.01, reason="punsafe_too_high"),
    "watermark": Fault(share=0.01, reason="pwatermark_too_high"),
    "dissimilar": Fault(share=0.01, reason="similarity_too_low"),
    "small": Fault(share=0.01, reason="too_small"),
    "small_declared": Fault(share=0.01, reason="declared_too_small"),
    "opted_out": Fault(share=0.01, reason="opted_out"),
}
"""Fault → how often it is planted and the reason, with the jobs' default thresholds."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the LAION-style list.

    `number` is that of the pair whose image is shown, `path` the URL's, `side` the width and height
    in the list, `fault` the planted fault, if any.
    """

    number: int
    path: str
    text: str
    side: int = CANVAS
    similarity: float
    punsafe: float
    pwatermark: float
    fault: str | None = None


def planted_counts(size: WorldSize) -> dict[str, int]:
    """The number of rows with each fault: at least one, unless there are no captions."""
    if not size.captions:
        return dict.fromkeys(FAULTS, 0)
    return {kind: max(1, round(size.captions * fault.share)) for kind, fault in FAULTS.items()}


@functools.lru_cache(maxsize=1)
def caption_rows(size: WorldSize) -> tuple[Row, ...]:
    """All rows of the LAION-style list, valid and faulty, in the list's order."""
    rng = np.random.default_rng((size.seed, _ORDER_STREAM))
    rows = [_valid_row(size.seed, number, rng) for number in range(size.captions)]
    # Each duplicate has an original of its own; exactly one of the two is dropped.
    originals = iter(rng.permutation(size.captions).tolist())
    for kind, count in planted_counts(size).items():
        for _ in range(count):
            if kind in ("duplicate_image", "repeated_url"):
                rows.append(_duplicate_row(rows[next(originals)], kind))
            else:
                rows.append(_faulty_row(_valid_row(size.seed, len(rows), rng), kind))
    return tuple(rows[index] for index in rng.permutation(len(rows)))


def _valid_row(seed: int, number: int, rng: np.random.Generator) -> Row:
    return Row(
        number=number,
        path=f"captions/{number:06d}.jpg",
        text=pair(seed, number).caption,
        similarity=float(rng.uniform(0.30, 0.45)),
        punsafe=float(rng.uniform(0.0, 0.2)),
        pwatermark=float(rng.uniform(0.0, 0.5)),
    )


def _duplicate_row(original: Row, kind: str) -> Row:
    path = f"mirror/{original.number:06d}.jpg" if kind == "duplicate_image" else original.path
    return dataclasses.replace(original, path=path, fault=kind)


def _faulty_row(valid: Row, kind: str) -> Row:
    name = f"{valid.number:06d}"
    changes: Mapping[str, Mapping[str, Any]] = {
        "dead_link": {"path": f"gone/{name}.jpg"},
        "html_page": {"path": f"pages/{name}.html"},
        "truncated": {"path": f"truncated/{name}.jpg"},
        "short_caption": {"text": "7"},
        "unsafe": {"punsafe": 0.93},
        "watermark": {"pwatermark": 0.97},
        "dissimilar": {"similarity": 0.11},
        "small": {"path": f"small/{name}.jpg"},
        "small_declared": {"path": f"small/{name}.jpg", "side": SMALL},
        "opted_out": {"path": f"optout/{name}.jpg"},
    }
    return dataclasses.replace(valid, fault=kind, **changes[kind])
