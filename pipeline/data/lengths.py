"""The length of every sample in tokens and media, from texts alone; cached next to the shards.

    DATA/.lengths/KEY.arrow     tokens, targets, media of each kind, and the skip reason if any

The key covers the shards and all that determines the tokens (tokenizer, prompt, template, tokens
per medium). The first rank of a machine computes the lengths, the others wait for its lock; this is
before any process group exists, so no collective can time out.
"""

from __future__ import annotations

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
from etl.storage.lock import owner_lock
from etl.storage.schema import Turn
from etl.storage.shards import ShardSet
from pipeline.data.preferences import PreferenceTokenizer
from pipeline.data.rollout_prompts import RolloutTokenizer
from pipeline.data.tokenize import SampleTokenizer

log = logging.getLogger(__name__)

AnyTokenizer = SampleTokenizer | PreferenceTokenizer | RolloutTokenizer

_FOLDER = ".lengths"
_MAX_SINGLE_PROCESS = 20_000
"""Samples up to which a process pool takes longer to start than it saves."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The lengths of all n samples.

    Args:
        tokens_n: of the backbone, after truncation; 0 for skipped samples.
        targets_n: tokens that are targets.
        media_n: media of each kind, inputs and generation targets; 0 for skipped samples.
        skip_reasons: by row, why a sample cannot be used; samples that can be are not in it.
    """

    tokens_n: NDArray[np.int32]
    targets_n: NDArray[np.int32]
    media_n: dict[str, NDArray[np.uint16]]
    skip_reasons: dict[int, str]

    def __len__(self) -> int:
        return len(self.tokens_n)


def read_lengths(
    folders: Sequence[Path],
    tokenizer: AnyTokenizer,
    kinds: Sequence[str],
    *,
    fallback: Path,
) -> Lengths:
    """Return the lengths of all samples of data folders; compute those that are not cached.

    Args:
        folders: complete folders of shards, in order.
        tokenizer: of the samples.
        kinds: of media in the stage (`Stage.kinds`).
        fallback: folder of the cache for data folders that are not writable.
    """
    tables = [_folder_lengths(folder, tokenizer, kinds, fallback) for folder in folders]
    skip_reasons: dict[int, str] = {}
    first = 0
    for table in tables:
        column = table["skip_reason"]
        (skipped,) = np.nonzero(~column.is_null().to_numpy())
        skip_reasons |= {first + row: column[row].as_py() for row in skipped.tolist()}
        first += table.num_rows
    return Lengths(
        tokens_n=_concatenate(tables, "tokens"),
        targets_n=_concatenate(tables, "targets"),
        media_n={kind: _concatenate(tables, f"media.{kind}") for kind in kinds},
        skip_reasons=skip_reasons,
    )


def _concatenate(tables: Sequence[pa.Table], name: str) -> NDArray[Any]:
    chunks = [chunk.to_numpy() for table in tables for chunk in table[name].chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _folder_lengths(
    folder: Path,
    tokenizer: AnyTokenizer,
    kinds: Sequence[str],
    fallback: Path,
) -> pa.Table:
    shards = ShardSet([folder], verify=False)
    cache = folder / _FOLDER
    try:
        cache.mkdir(exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        cache = fallback / _FOLDER
    path = cache / f"{tokenizer.key[:16]}-{shards.fingerprint[:16]}.arrow"
    if not path.is_file():
        with owner_lock(path.with_suffix(".lock"), name=str(cache), wait=True):
            if not path.is_file():
                _write_lengths(path, folder, shards, tokenizer, kinds)
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        table: pa.Table = reader.read_all()
    if table.num_rows != len(shards):
        raise UserError(f"{path}: {table.num_rows} rows, the data has {len(shards)}; remove it")
    return table


def _write_lengths(
    path: Path,
    folder: Path,
    shards: ShardSet,
    tokenizer: AnyTokenizer,
    kinds: Sequence[str],
) -> None:
    """Tokenize every sample and write the lengths."""
    log.info("%s: counting the tokens of %d samples, once", folder, len(shards))
    schema = pa.schema(
        [
            ("tokens", pa.int32()),
            ("targets", pa.int32()),
            *((f"media.{kind}", pa.uint16()) for kind in kinds),
            ("skip_reason", pa.string()),
        ]
    )
    batches = shards.batches(list(tokenizer.columns))
    count = _LengthCounter(tokenizer, tuple(kinds))
    with atomic_file(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        for columns in _map_batches(batches, len(shards), count):
            writer.write_table(pa.table(columns, schema=schema))


class _LengthCounter:
    """Computes the lengths of a batch of samples; an object, since it is pickled for workers."""

    def __init__(self, tokenizer: AnyTokenizer, kinds: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._kinds = kinds

    def __call__(self, table: pa.Table) -> dict[str, list[object]]:
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        columns: dict[str, list[object]] = {"tokens": [], "targets": []}
        columns |= {f"media.{kind}": [] for kind in self._kinds} | {"skip_reason": []}
        for sample_id, turns, media, *more in rows:
            dialogues = ([Turn(**turn) for turn in column or ()] for column in (turns, *more))
            length = self._tokenizer.length(sample_id, next(dialogues), media, *dialogues)
            columns["tokens"].append(length.tokens)
            columns["targets"].append(length.targets)
            columns["skip_reason"].append(length.skip_reason)
            for kind in self._kinds:
                columns[f"media.{kind}"].append(length.branch_kinds.count(kind))
        return columns


_count: _LengthCounter | None = None
"""In a worker process: what it computes."""


def _start_worker(count: _LengthCounter) -> None:
    global _count  # noqa: PLW0603 - set once, as the process starts
    _count = count


def _count_in_worker(table: pa.Table) -> dict[str, list[object]]:
    assert _count is not None
    return _count(table)


def _map_batches(
    batches: Iterator[pa.Table], rows: int, count: _LengthCounter
) -> Iterator[dict[str, list[object]]]:
    processes = len(os.sched_getaffinity(0))
    if rows <= _MAX_SINGLE_PROCESS or processes == 1:
        yield from map(count, batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_start_worker, initargs=(count,)
    ) as pool:
        # A few batches at a time: those of a large corpus do not fit into memory together.
        pending: deque[Future[dict[str, list[object]]]] = deque()
        for batch in batches:
            pending.append(pool.submit(_count_in_worker, batch))
            if len(pending) > 4 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
