"""Writes dialogues, preferences and questions for RLHF as lists of URLs, and their media.

Each record is a dialogue in LLaVA's format, of a picture or a sound in turn; preferences have
`rejected_response` and `feedback`. What `etl/digits/alignment.py` says of purposes is what the
lists hold.
"""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.digits.alignment import KINDS, Purpose, Record, record
from etl.storage.atomic import write_json
from etl.storage.schema import PLACEHOLDERS

_FOLDER = "alignment"


@dataclass(frozen=True, kw_only=True)
class _List:
    """A list: what its records are for, of which scans and telephones, and how many there are.

    Args:
        purposes: of its records, in turn.
        split: of scans and telephones.
        kinds: of media.
        share: of the number of preferences, for each purpose and kind.
    """

    purposes: tuple[Purpose, ...]
    split: str = "train"
    kinds: tuple[str, ...] = tuple(KINDS)
    share: float = 1.0


LISTS = {
    "sound_captions.json": _List(purposes=("captions",), kinds=("audio",), share=0.5),
    "easy_dialogues.json": _List(purposes=("easy",)),
    "preferences.json": _List(purposes=("preferences",)),
    "present_and_absent.json": _List(purposes=("present", "absent"), split="test", share=0.1),
    "validation.json": _List(purposes=("present", "absent"), split="validation", share=0.1),
}
"""Files of the world. Settings are chosen by the last one, results reported of the one before."""


def write_alignment(folder: Path, seed: int, preferences: int, base_url: str) -> None:
    """Write the lists and all their media.

    Args:
        folder: the world's folder; the files go to its `media/alignment/`.
        seed: of all random numbers.
        preferences: about each kind of medium, and as many easy dialogues; half as many captions
            of sounds, and a tenth as many held-out questions about what is there, and about what is
            not.
        base_url: the server's address, without a trailing slash.
    """
    media = folder / "media" / _FOLDER
    media.mkdir(parents=True, exist_ok=True)
    write = functools.partial(_write, media, seed, f"{base_url}/{_FOLDER}")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, own in LISTS.items():
            numbered = [
                (own.split, kind, purpose, number)
                for number in range(round(preferences * own.share))
                for purpose in own.purposes
                for kind in own.kinds
            ]
            write_json(folder / name, list(pool.map(write, numbered, chunksize=64)))


def _write(
    media: Path, seed: int, base_url: str, numbered: tuple[str, str, Purpose, int]
) -> dict[str, Any]:
    """Write the medium of one record, and return its row of the list."""
    split, kind, purpose, number = numbered
    shown = record(seed, kind, purpose, number, split)
    name = f"{split}-{kind}-{purpose}-{number:06d}"
    file = f"{name}{KINDS[kind].suffix}"
    (media / file).write_bytes(KINDS[kind].encode(shown.content))
    return {"id": name, kind: f"{base_url}/{file}", **_texts(kind, purpose, shown)}


def _texts(kind: str, purpose: Purpose, shown: Record) -> dict[str, Any]:
    if not shown.questions:
        turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": shown.caption}]
    else:
        turns = [
            {"from": who, "value": text}
            for judged in shown.questions
            for who, text in (("human", judged.question.text), ("gpt", judged.question.answer))
        ]
    turns[0]["value"] = f"{PLACEHOLDERS[kind]}\n{turns[0]['value']}".strip()
    texts: dict[str, Any] = {"conversations": turns}
    if len(shown.questions) == 1:
        (judged,) = shown.questions
        texts["kind"] = judged.question.kind
        if purpose == "preferences":
            texts |= {"rejected_response": judged.rejected, "feedback": judged.critique}
    return texts
