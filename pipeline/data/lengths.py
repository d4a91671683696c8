"""What each sample takes, told from texts and the spec alone; cached beside the shards.

    DATA/.lengths/KEY.arrow     tokens, targets, media of each kind, and why it cannot be used

The key is of the shards and of what decides the tokens (tokenizer, prompt, template, tokens of a
medium). Of the ranks of one machine the first that comes counts, the others wait for its lock.
Nobody is in a process group yet, so nothing can time out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl.cli import UserError
from etl.storage.atomic import atomic_file
from etl.storage.schema import Turn
from etl.storage.shards import ShardSet
from pipeline.data.tokenize import SampleTokenizer

log = logging.getLogger(__name__)

_FOLDER = ".lengths"
_ALONE = 20_000
"""Rows up to which other processes would take longer to start than to help."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What each row of the data takes; n rows.

    Args:
        tokens_n: of the backbone, after truncation; 0 for what cannot be used.
        targets_n: tokens that are learnt.
        media_n: media of each kind, both ways; 0 of what cannot be used.
        faults: why a row cannot be used; rows that can are not in it.
    """

    tokens_n: NDArray[np.int32]
    targets_n: NDArray[np.int32]
    media_n: dict[str, NDArray[np.uint16]]
    faults: dict[int, str]

    def __len__(self) -> int:
        return len(self.tokens_n)


def read_lengths(
    folders: Sequence[Path], drafter: SampleTokenizer, kinds: Sequence[str], *, spare: Path
) -> Lengths:
    """Return the lengths of all rows of data folders, counting them where that was not done yet.

    Args:
        folders: complete folders of shards, in order.
        drafter: lays samples out.
        kinds: of media in the stage (`Stage.kinds`).
        spare: where the cache goes for folders that cannot be written.
    """
    parts = [_folder_lengths(folder, drafter, kinds, spare) for folder in folders]
    faults: dict[int, str] = {}
    first = 0
    for part in parts:
        (bad,) = np.nonzero(~part["fault"].is_null().to_numpy())
        faults |= {first + row: part["fault"][row].as_py() for row in bad.tolist()}
        first += part.num_rows
    return Lengths(
        tokens_n=_joined(parts, "tokens"),
        targets_n=_joined(parts, "targets"),
        media_n={kind: _joined(parts, f"media.{kind}") for kind in kinds},
        faults=faults,
    )


def _joined(parts: Sequence[pa.Table], name: str) -> NDArray[Any]:
    chunks = [chunk.to_numpy() for part in parts for chunk in part[name].chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _folder_lengths(
    folder: Path, drafter: SampleTokenizer, kinds: Sequence[str], spare: Path
) -> pa.Table:
    shards = ShardSet([folder], verify=False)
    cache = folder / _FOLDER
    try:
        cache.mkdir(exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        cache = spare / _FOLDER
        cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{drafter.key[:16]}-{shards.fingerprint[:16]}.arrow"
    if not path.is_file():
        with _lock(path.with_suffix(".lock")):
            if not path.is_file():
                _count(path, folder, shards, drafter, kinds)
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        table: pa.Table = reader.read_all()
    if table.num_rows != len(shards):
        raise UserError(f"{path}: {table.num_rows} rows, the data has {len(shards)}; remove it")
    return table


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _count(
    path: Path, folder: Path, shards: ShardSet, drafter: SampleTokenizer, kinds: Sequence[str]
) -> None:
    """Lay out every sample's text and write down what it takes."""
    log.info("%s: counts the tokens of %d samples, once", folder, len(shards))
    schema = pa.schema(
        [
            ("tokens", pa.int32()),
            ("targets", pa.int32()),
            *((f"media.{kind}", pa.uint16()) for kind in kinds),
            ("fault", pa.string()),
        ]
    )
    batches = shards.batches(["id", "turns", "media.kind"])
    with atomic_file(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        for columns in _measured(batches, len(shards), _Measure(drafter, tuple(kinds))):
            writer.write_table(pa.table(columns, schema=schema))


class _Measure:
    """Measures a batch of samples; an object, since it travels to other processes."""

    def __init__(self, drafter: SampleTokenizer, kinds: tuple[str, ...]) -> None:
        self._drafter = drafter
        self._kinds = kinds

    def __call__(self, table: pa.Table) -> dict[str, list[object]]:
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        columns: dict[str, list[object]] = {"tokens": [], "targets": []}
        columns |= {f"media.{kind}": [] for kind in self._kinds} | {"fault": []}
        for name, said, media in rows:
            turns = [Turn(**turn) for turn in said]
            length = self._drafter.length(name, turns, media)
            columns["tokens"].append(length.tokens)
            columns["targets"].append(length.targets)
            columns["fault"].append(length.fault)
            for kind in self._kinds:
                columns[f"media.{kind}"].append(length.media.count(kind))
        return columns


_measure: _Measure | None = None
"""In a helping process: what it measures with."""


def _start_helping(measure: _Measure) -> None:
    global _measure  # noqa: PLW0603 - set once, as the process starts
    _measure = measure


def _help(table: pa.Table) -> dict[str, list[object]]:
    assert _measure is not None
    return _measure(table)


def _measured(
    batches: Iterator[pa.Table], rows: int, measure: _Measure
) -> Iterator[dict[str, list[object]]]:
    processes = len(os.sched_getaffinity(0))
    if rows <= _ALONE or processes == 1:
        yield from map(measure, batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_start_helping, initargs=(measure,)
    ) as pool:
        # A few batches at a time: those of a large corpus do not fit into memory together.
        waiting: deque[Future[dict[str, list[object]]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_help, batch))
            if len(waiting) > 4 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
