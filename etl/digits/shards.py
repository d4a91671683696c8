"""Writes shards of the digits world directly, without a web server or a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.digits.faults import WorldSize
from etl.digits.records import VERSION
from etl.digits.subjects import SampleFactory, sample_factories
from etl.storage.manifest import MANIFEST
from etl.storage.schema import Sample
from etl.storage.shards import write_folder

_JOB = "digits"


def write_shards(
    folder: Path, name: str, size: WorldSize, on_sample: Callable[[], object] = lambda: None
) -> list[Path]:
    """Write the samples about a subject, one folder per purpose; keeps existing folders.

    Args:
        folder: gets `captions`, `dialogues` and `questions`, where the subject has them.
        name: one of `etl.digits.subjects.NAMES`.
        size: how many of each, and their seed.
        on_sample: called for every sample that is rendered.
    """
    written = []
    for purpose, factory in sample_factories(name).items():
        rows: int = {
            "captions": size.captions,
            "dialogues": size.dialogues,
            "questions": size.questions,
        }[purpose]
        target = folder / purpose
        plan = {
            "version": VERSION,
            "subject": name,
            "purpose": purpose,
            "rows": rows,
            "seed": size.seed,
        }
        written.append(target)
        if _holds(target, plan):
            continue
        _clear(target)
        samples = _samples(factory, size.seed, rows, on_sample)
        write_folder(target, samples, job=_JOB, plan=plan)
    return written


def _samples(
    factory: SampleFactory, seed: int, rows: int, on_sample: Callable[[], object]
) -> Iterator[Sample]:
    for number in range(rows):
        yield factory(seed, number)
        on_sample()


def _holds(folder: Path, plan: dict[str, object]) -> bool:
    manifest = folder / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_bytes())["plan"] == plan


def _clear(folder: Path) -> None:
    """Remove an earlier world's shards, starting with the manifest that declares them complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("shard-*.arrow"):
        path.unlink()
