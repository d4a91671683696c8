"""Write the digits world as a small web: media files, and lists of URLs as corpora publish them.

`laion.parquet` has LAION's columns, `dialogues.json` and `questions.json` LLaVA's instruction
format. What is wrong with the first on purpose is told in `planted.json`, so that a job's counts
can be compared with the truth. Everything is a function of the seed; only the URLs know the
server's port.
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

from etl.digits.faults import FAULTS, SMALL, Row, World, caption_rows, planted_counts
from etl.digits.records import VERSION, Dialogue, conversation, dialogue, pair, question
from etl.digits.scenes import encode, render
from etl.storage.atomic import atomic_file, write_json

_WORTH_PROCESSES = 3000
"""Files from which on further processes are faster, although each imports everything anew."""

_PAGE = b"<!doctype html><title>moved</title><p>The picture that was here has moved.</p>\n"


def media_count(world: World) -> int:
    """An upper bound of the files that `write_media` writes."""
    faulty = sum(planted_counts(world).values())
    return world.captions + faulty + world.dialogues + world.questions


def write_media(folder: Path, world: World, tick: Callable[[], object]) -> None:
    """Render every file that the server is to serve, unless an earlier run finished it.

    Args:
        folder: the world's folder; the files go to its `media/`.
        world: what to render.
        tick: called once per file.
    """
    marker = folder / "media.json"
    wanted = {"version": VERSION, **asdict(world)}
    if marker.is_file():
        if json.loads(marker.read_bytes()) == wanted:
            return
        marker.unlink()
        shutil.rmtree(folder / "media", ignore_errors=True)
    write = functools.partial(_write_file, folder / "media", world.seed)
    files = list(_files(world))
    for kind in {Path(file.path).parent for file in files}:
        (folder / "media" / kind).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if len(files) < _WORTH_PROCESSES:
            done: Iterator[None] = map(write, files)
        else:
            # Started afresh, not forked: this process may already have threads.
            pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
            done = stack.enter_context(pool).map(write, files, chunksize=64)
        for _ in done:
            tick()
    write_json(marker, wanted)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file to render: where it goes, and what it shows."""

    path: str
    shows: Row | Dialogue


def _files(world: World) -> Iterator[_File]:
    done: set[str] = set()
    for row in caption_rows(world):
        if row.fault != "dead_link" and row.path not in done:
            done.add(row.path)
            yield _File(path=row.path, shows=row)
    for number in range(world.dialogues):
        yield _File(path=_dialogue_path(number), shows=dialogue(world.seed, number))
    for number in range(world.questions):
        yield _File(path=_question_path(number), shows=question(world.seed, number))


def _write_file(folder: Path, seed: int, file: _File) -> None:
    if isinstance(file.shows, Row):
        data = _caption_file(seed, file.shows)
    else:
        data = encode(render(file.shows.scene), "image/png")
    (folder / file.path).write_bytes(data)  # the marker, written last, tells that all are there


def _caption_file(seed: int, row: Row) -> bytes:
    if row.fault == "html_page":
        return _PAGE
    picture = render(pair(seed, row.number).scene)
    if row.fault in ("small", "small_declared"):
        picture = picture.resize((SMALL, SMALL), Image.Resampling.BICUBIC)
    data = encode(picture, "image/jpeg")
    return data[: len(data) // 2] if row.fault == "truncated" else data


def _dialogue_path(number: int) -> str:
    return f"dialogues/{number:06d}.png"


def _question_path(number: int) -> str:
    return f"questions/{number:06d}.png"


def write_lists(folder: Path, world: World, base_url: str) -> None:
    """Write the lists, each atomically.

    Args:
        folder: the world's folder.
        world: what the lists tell.
        base_url: where the server serves the media, without a slash at its end.
    """
    rows = caption_rows(world)
    with atomic_file(folder / "laion.parquet") as stream:
        pq.write_table(_laion_table(rows, base_url), stream)
    write_json(folder / "planted.json", _truth(world, rows))
    dialogues = [
        _instruction(
            f"dialogue-{number:06d}",
            f"{base_url}/{_dialogue_path(number)}",
            dialogue(world.seed, number),
        )
        for number in range(world.dialogues)
    ]
    write_json(folder / "dialogues.json", dialogues)
    write_json(folder / "questions.json", _questions(world, base_url))


def _questions(world: World, base_url: str) -> list[dict[str, Any]]:
    records = []
    for number in range(world.questions):
        record = question(world.seed, number)
        entry = _instruction(
            f"question-{number:06d}", f"{base_url}/{_question_path(number)}", record
        )
        records.append({**entry, "kind": record.questions[0].kind})
    return records


def _instruction(identity: str, url: str, record: Dialogue) -> dict[str, Any]:
    return {"id": identity, "image": url, "conversations": conversation(record)}


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


def _truth(world: World, rows: Sequence[Row]) -> dict[str, Any]:
    planted = {
        kind: {
            "count": count,
            "reason": FAULTS[kind].reason,
            "rows": [index for index, row in enumerate(rows) if row.fault == kind],
        }
        for kind, count in planted_counts(world).items()
    }
    return {
        "list": "laion.parquet",
        "rows": len(rows),
        "sound": world.captions,
        "planted": planted,
    }
