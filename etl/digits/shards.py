"""Shards of the digits world without a web and without a job, for experiments and tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.digits.faults import World
from etl.digits.records import VERSION
from etl.digits.subjects import Maker, makers
from etl.storage.manifest import MANIFEST
from etl.storage.schema import Sample
from etl.storage.shards import write_folder

_JOB = "digits"


def write_shards(
    folder: Path, name: str, world: World, on_sample: Callable[[], object] = lambda: None
) -> list[Path]:
    """Write the samples about a subject, one folder a purpose; folders that are there are kept.

    Args:
        folder: gets `captions`, `dialogues` and `questions`, as far as the subject has them.
        name: one of `etl.digits.subjects.NAMES`.
        world: how many of each, and their seed.
        on_sample: called for every sample that is rendered.
    """
    written = []
    for purpose, make in makers(name).items():
        rows: int = {
            "captions": world.captions,
            "dialogues": world.dialogues,
            "questions": world.questions,
        }[purpose]
        target = folder / purpose
        plan = {
            "version": VERSION,
            "subject": name,
            "purpose": purpose,
            "rows": rows,
            "seed": world.seed,
        }
        written.append(target)
        if _holds(target, plan):
            continue
        _empty(target)
        write_folder(target, _samples(make, world.seed, rows, on_sample), job=_JOB, plan=plan)
    return written


def _samples(
    make: Maker, seed: int, rows: int, on_sample: Callable[[], object]
) -> Iterator[Sample]:
    for number in range(rows):
        yield make(seed, number)
        on_sample()


def _holds(folder: Path, plan: dict[str, object]) -> bool:
    manifest = folder / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_bytes())["plan"] == plan


def _empty(folder: Path) -> None:
    """Take an earlier world's shards away, first of all the file that calls them complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("shard-*.arrow"):
        path.unlink()
