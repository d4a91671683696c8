"""Writes requests for generated media as lists in NExT-GPT's format (MosIT), and their media.

`generation_captions.json` is for MM-PT: captions that ask for a picture, a sound or a video, and
sounds with their captions. `requests.json` is for MM-IT, `held_out_requests.json` for evaluation.
What a medium must show to be correct is in fields of its record: `task`, `digit`, `colour` and
`direction`.
"""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from etl.digits.generation import CAPTIONS, TASKS, File, Request, captioned, heard, request
from etl.storage.atomic import write_json

HELD_OUT_SHARE = 6
"""A task has one held-out request for so many to train on."""
_FOLDER = "generation"


def write_generation(folder: Path, seed: int, requests: int, base_url: str) -> None:
    """Write the three lists and all their media.

    Args:
        folder: the world's folder; the files go to its `media/generation/`.
        seed: of all random numbers.
        requests: of each task, and captions of each kind of medium; a sixth as many held out.
        base_url: the server's address, without a trailing slash.
    """
    media = folder / "media" / _FOLDER
    media.mkdir(parents=True, exist_ok=True)
    sizes = {
        **{f"caption:{kind}": requests for kind in CAPTIONS},
        "heard": requests,
        **{f"request:{task}": requests for task in TASKS},
        **{f"held_out:{task}": requests // HELD_OUT_SHARE for task in TASKS},
    }
    numbered = [(name, number) for name, size in sizes.items() for number in range(size)]
    write = functools.partial(_write, media, seed, f"{base_url}/{_FOLDER}")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        records = list(pool.map(write, numbered, chunksize=64))
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _LISTS.values()}
    for (name, _), record in zip(numbered, records, strict=True):
        lists[_LISTS[name.partition(":")[0]]].append(record)
    for file, listed in lists.items():
        write_json(folder / file, listed)


_LISTS = {
    "caption": "generation_captions.json",
    "heard": "generation_captions.json",
    "request": "requests.json",
    "held_out": "held_out_requests.json",
}
"""What records are for → their list."""


def _write(media: Path, seed: int, base_url: str, numbered: tuple[str, int]) -> dict[str, Any]:
    """Write the media of one record, and return it."""
    name, number = numbered
    purpose, _, what = name.partition(":")
    stem = f"{name.replace(':', '-')}-{number:06d}"
    record: dict[str, Any] = {"id": stem}

    def add(file: File, caption: str = "", ending: str = "") -> str:
        """Write a file, list it in the record, and return its mark."""
        path = f"{stem}{ending}{file.suffix}"
        (media / path).write_bytes(file.data)
        entry = {f"{file.kind}_name": f"{base_url}/{path}", "caption": caption}
        record.setdefault(f"{file.kind}_list", []).append(entry)
        mark = file.kind.capitalize()
        return f"<{mark}>{base_url}/{path}</{mark}>"

    if purpose == "heard":
        sound, caption = heard(seed, number)
        return _with_turns(record, add(sound), caption)
    made = _request(seed, purpose, what, number)
    user = made.text if made.shown is None else f"{add(made.shown, ending='-shown')}\n{made.text}"
    record |= {"task": what, **made.features}
    return _with_turns(record, user, add(made.target, made.caption))


def _request(seed: int, purpose: str, what: str, number: int) -> Request:
    if purpose == "caption":
        return captioned(seed, what, number)
    return request(seed, what, number, held_out=purpose == "held_out")


def _with_turns(record: dict[str, Any], user: str, assistant: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": user}, {"from": "gpt", "value": assistant}]
    return record | {"conversation": turns}
