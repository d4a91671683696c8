"""Writes the digits world as a small web: media files, and URL lists in published formats.

`laion.parquet` has LAION's columns, `dialogues.json` and `questions.json` LLaVA's instruction
format. `planted.json` lists the faults planted in the first, so that a job's counts can be compared
with the truth. Everything is a function of the seed; only the URLs depend on the server's port.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from etl.digits.faults import FAULTS, SMALL, Row, WorldSize, caption_rows, planted_counts
from etl.digits.records import VERSION, Dialogue, conversation, dialogue, pair, question
from etl.digits.scenes import encode, render
from etl.storage.atomic import atomic_file, write_json

_MIN_FILES_FOR_POOL = 3000
"""Number of files from which a process pool is faster, although each process imports everything."""

_PAGE = b"<!doctype html><title>moved</title><p>The picture that was here has moved.</p>\n"


def media_count(size: WorldSize) -> int:
    """An upper bound on the number of files that `write_media` writes."""
    faulty = sum(planted_counts(size).values())
    return size.captions + faulty + size.dialogues + size.questions


def write_media(folder: Path, size: WorldSize, tick: Callable[[], object]) -> None:
    """Render every file that the server is to serve, unless an earlier run finished it.

    Args:
        folder: the world's folder; the files go to its `media/`.
        size: what to render.
        tick: called once per file.
    """
    marker = folder / "media.json"
    current = {"version": VERSION, **asdict(size)}
    if marker.is_file():
        if json.loads(marker.read_bytes()) == current:
            return
        marker.unlink()
        shutil.rmtree(folder / "media", ignore_errors=True)
    write = functools.partial(_write_file, folder / "media", size.seed)
    files = list(_files(size))
    for kind in {Path(file.path).parent for file in files}:
        (folder / "media" / kind).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if len(files) < _MIN_FILES_FOR_POOL:
            done: Iterator[None] = map(write, files)
        else:
            # Spawned, not forked: this process may already have threads.
            pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
            done = stack.enter_context(pool).map(write, files, chunksize=64)
        for _ in done:
            tick()
    write_json(marker, current)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file to render: its path and content."""

    path: str
    shows: Row | Dialogue


def _files(size: WorldSize) -> Iterator[_File]:
    done: set[str] = set()
    for row in caption_rows(size):
        if row.fault != "dead_link" and row.path not in done:
            done.add(row.path)
            yield _File(path=row.path, shows=row)
    for number in range(size.dialogues):
        yield _File(path=_dialogue_path(number), shows=dialogue(size.seed, number))
    for number in range(size.questions):
        yield _File(path=_question_path(number), shows=question(size.seed, number))


def _write_file(folder: Path, seed: int, file: _File) -> None:
    if isinstance(file.shows, Row):
        data = _caption_file(seed, file.shows)
    else:
        data = encode(render(file.shows.scene), "image/png")
    (folder / file.path).write_bytes(data)  # not atomic: the marker, written last, declares all


def _caption_file(seed: int, row: Row) -> bytes:
    if row.fault == "html_page":
        return _PAGE
    image = render(pair(seed, row.number).scene)
    if row.fault in ("small", "small_declared"):
        image = image.resize((SMALL, SMALL), Image.Resampling.BICUBIC)
    data = encode(image, "image/jpeg")
    return data[: len(data) // 2] if row.fault == "truncated" else data


def _dialogue_path(number: int) -> str:
    return f"dialogues/{number:06d}.png"


def _question_path(number: int) -> str:
    return f"questions/{number:06d}.png"


def write_lists(folder: Path, size: WorldSize, base_url: str) -> None:
    """Write the lists, each atomically.

    Args:
        folder: the world's folder.
        size: what the lists contain.
        base_url: the server's address, without a trailing slash.
    """
    rows = caption_rows(size)
    with atomic_file(folder / "laion.parquet") as stream:
        pq.write_table(_laion_table(rows, base_url), stream)
    write_json(folder / "planted.json", _planted(size, rows))
    dialogues = [
        _instruction(
            f"dialogue-{number:06d}",
            f"{base_url}/{_dialogue_path(number)}",
            dialogue(size.seed, number),
        )
        for number in range(size.dialogues)
    ]
    write_json(folder / "dialogues.json", dialogues)
    write_json(folder / "questions.json", _questions(size, base_url))


def _questions(size: WorldSize, base_url: str) -> list[dict[str, Any]]:
    records = []
    for number in range(size.questions):
        record = question(size.seed, number)
        entry = _instruction(
            f"question-{number:06d}", f"{base_url}/{_question_path(number)}", record
        )
        records.append({**entry, "kind": record.questions[0].kind})
    return records


def _instruction(record_id: str, url: str, record: Dialogue) -> dict[str, Any]:
    return {"id": record_id, "image": url, "conversations": conversation(record)}


def _laion_table(rows: Sequence[Row], base_url: str) -> pa.Table:
    """LAION's published columns and types."""
    return pa.table(
        {
            "URL": pa.array([f"{base_url}/{row.path}" for row in rows], pa.string()),
            "TEXT": pa.array([row.text for row in rows], pa.string()),
            "HEIGHT": pa.array([row.side for row in rows], pa.int64()),
            "WIDTH": pa.array([row.side for row in rows], pa.int64()),
            "similarity": pa.array([row.similarity for row in rows], pa.float64()),
            "punsafe": pa.array([row.punsafe for row in rows], pa.float32()),
            "pwatermark": pa.array([row.pwatermark for row in rows], pa.float32()),
        }
    )


def _planted(size: WorldSize, rows: Sequence[Row]) -> dict[str, Any]:
    planted = {
        kind: {
            "count": count,
            "reason": FAULTS[kind].reason,
            "rows": [index for index, row in enumerate(rows) if row.fault == kind],
        }
        for kind, count in planted_counts(size).items()
    }
    return {
        "list": "laion.parquet",
        "rows": len(rows),
        "valid": size.captions,
        "planted": planted,
    }
