"""Precompute the feature cache: a Ray job over the distinct media of data folders.

    python -m pipeline features PRESET --data DIR… --output DIR [--stage pt|sft|init]

The plan needs no media, only columns: it divides the distinct media into ranges of a fixed size and
leaves out those that are cached completely. A worker reads a range, decodes, encodes and writes one
file, atomically. The cache is the job's only state: killed and run again, the job has the same
ranges and computes those that are missing.

Shapes: k media.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from etl.cli import UserError, parse
from etl.runtime.executor import ExecutorName, open_executor
from etl.runtime.worker_pool import WorkerPool
from etl.storage.atomic import write_json
from etl.storage.schema import Turn
from etl.storage.shards import ShardSet
from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.run_config import RunConfig, Scale, StageName, TrainOptions, resolve
from pipeline.data.generation_targets import branch_kinds, captions
from pipeline.feature_cache.cache_key import medium_key, text_key
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.worker import (
    MediaRange,
    PrecomputeWorker,
    RangeResult,
    UnreadableMedium,
)

log = logging.getLogger(__name__)

_THREADS = 4
"""Threads of a worker without a GPU: an encoder per CPU would take too much memory."""
_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions:
    """Precompute a feature cache: encode each medium once, for `--feature-cache`.

    Runs on the Ray cluster at RAY_ADDRESS, or else on this machine; one worker per GPU, or per four
    CPUs. The same command resumes after a kill.
    """

    preset: tyro.conf.Positional[str]
    """A preset's name, or a run's config.json or .yaml."""
    data: tuple[Path, ...]
    """Folders of Arrow shards."""
    output: Path
    """The cache, as given to training as --feature-cache; may hold other encoders' features."""
    stage: StageName = "pt"
    """The stage that will read it: determines which encoders are frozen, and their precision."""
    part: str | None = None
    """Of the stage `init`, where the preset pre-trains several."""
    init_from: Path | None = None
    """As in training: a run that may have trained an encoder that is frozen in this stage."""
    scale: Scale = "full"
    """`tiny`: the preset's classes and wiring with small sizes and random weights."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them."""
    weights: Literal["pretrained", "random"] | None = None
    """Default: pretrained."""
    seed: int | None = None
    """Of new weights, as in training. Default: 0."""
    precision: Literal["fp32", "bf16"] | None = None
    """Default: the stage's."""
    media_per_file: int = 256
    """Media per file; a kill loses at most so many per worker."""
    batch: int = 16
    """Media per encoder call."""
    executor: ExecutorName = "auto"
    """Where the workers run: processes on this machine (local) or actors of a Ray cluster (ray);
    auto is ray where RAY_ADDRESS names a cluster."""
    verify: bool = True
    """Read all existing files first and quarantine damaged ones."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass
class MediaCount:
    """The distinct media of one kind; `cached` ones were in the cache before."""

    distinct: int = 0
    cached: int = 0
    encoded: int = 0
    unreadable: int = 0
    encoder: str = ""


@dataclass
class MediaList:
    """All media of one kind in the data, as columns."""

    key_prefixes: array[int] = field(default_factory=lambda: array("Q"))
    rows: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("I"))
    cached: array[int] = field(default_factory=lambda: array("B"))

    def add(self, key: bytes, row: int, number: int, *, cached: bool) -> None:
        """Append a medium: 21 bytes, since only the first 8 bytes of its key are stored."""
        self.key_prefixes.append(int.from_bytes(key[:8], "little"))
        self.rows.append(row)
        self.numbers.append(number)
        self.cached.append(cached)

    def distinct(self) -> NDArray[np.intp]:
        """Return the indices (k,) at which each key comes first, in order."""
        _, first_k = np.unique(np.frombuffer(self.key_prefixes, np.uint64), return_index=True)
        return np.sort(first_k)

    def media(self, indices_k: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return row and number (k, 2) of media."""
        columns = (np.frombuffer(self.rows, np.uint64), np.frombuffer(self.numbers, np.uint32))
        return np.stack([column[indices_k].astype(np.int64) for column in columns], axis=1)


def precompute(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(PrecomputeOptions, prog="python -m pipeline features", args=args)
    for name in ("media_per_file", "batch"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: want 1 or more")
    run = _run_config(options)
    shards = ShardSet([Path(folder) for folder in run.data])
    initial = newest_weights(Path(run.init_from)) if run.init_from else None
    with _start_workers(options.executor) as (pool, threads, device):
        make = partial(
            PrecomputeWorker, run, initial, batch=options.batch, threads=threads, device=device
        )
        stores = _stores(run, pool, make, verify=options.verify)
        inputs: dict[str, InputBranchSpec] = {b.modality: b for b in run.system.model.inputs}
        outputs = run.settings.output_branches(run.system.model)
        counts, ranges = plan_ranges(shards, inputs, outputs, stores, options.media_per_file)
        started = time.monotonic()
        unreadable = _encode(pool, make, ranges, counts)
        seconds = time.monotonic() - started
    _write_unreadable(stores, shards.fingerprint, unreadable)
    _print_counts(counts, seconds, as_json=options.json)
    return 0


def _run_config(options: PrecomputeOptions) -> RunConfig:
    """Return the training run that would read the cache; its output is the cache's folder."""
    shared = ("preset", "data", "output", "part", "init_from", "scale", "set", "weights", "seed")
    words = {name: getattr(options, name) for name in (*shared, "precision")}
    return resolve(TrainOptions(**words), options.stage)


@contextlib.contextmanager
def _start_workers(name: ExecutorName) -> Iterator[tuple[WorkerPool, int, str]]:
    """Yield the workers, the threads of each, and the encoders' device."""
    with open_executor(name) as executor:
        cpus, gpus = executor.cpus, executor.gpus
        threads = max(1, min(2 * _THREADS, cpus // gpus)) if gpus else min(_THREADS, cpus)
        size = gpus or cpus // threads
        with executor.pool(size, cpus=threads, gpus=1 if gpus else 0) as pool:
            yield pool, threads, "cuda" if gpus else "cpu"


def _stores(
    run: RunConfig, pool: WorkerPool, make: Callable[[], PrecomputeWorker], *, verify: bool
) -> dict[str, FeatureStore]:
    """Return a store for each kind of media whose encoder is frozen.

    A worker returns the identities: the encoders are built where they are used.
    """
    (encoder_ids,) = pool.map_unordered("precompute", make, [None])
    assert isinstance(encoder_ids, Mapping)
    if not encoder_ids:
        raise UserError(
            f"{run.system.name}: stage {run.stage} trains all encoders; there is nothing to cache"
        )
    folder = Path(run.output)
    by_key = {encoder.key: FeatureStore(folder, encoder) for encoder in encoder_ids.values()}
    for store in by_key.values():
        store.create()
        if verify:
            store.quarantine_damaged()
    return {kind: by_key[encoder.key] for kind, encoder in encoder_ids.items()}


def plan_ranges(
    shards: ShardSet,
    inputs: Mapping[str, InputBranchSpec],
    outputs: Sequence[OutputBranchSpec],
    stores: Mapping[str, FeatureStore],
    media_per_file: int,
) -> tuple[dict[str, MediaCount], list[MediaRange]]:
    """Return how many distinct media of each kind there are, and the ranges to be encoded.

    Media are identified by the digests in the shards; none is read. A worker hashes the bytes: a
    wrong digest may leave a medium out of the cache, and does no other harm. Of a medium to be
    generated, its caption is encoded.
    """
    media = {kind: MediaList() for kind in stores}
    for row, keys in enumerate(_keys(shards, inputs, outputs)):
        for number, (kind, key) in enumerate(keys):
            if kind in media:
                media[kind].add(key, row, number, cached=key in stores[kind])
    counts, ranges = {}, []
    for kind, found in media.items():
        distinct_k = found.distinct()
        cached_k = np.frombuffer(found.cached, np.uint8)[distinct_k].astype(bool)
        counts[kind] = MediaCount(
            distinct=len(distinct_k), cached=int(cached_k.sum()), encoder=stores[kind].folder.name
        )
        for start in range(0, len(distinct_k), media_per_file):
            chosen = slice(start, start + media_per_file)
            missing_k = distinct_k[chosen][~cached_k[chosen]]
            if len(missing_k):
                ranges.append(MediaRange(kind=kind, media_k2=found.media(missing_k)))
    return counts, ranges


def _keys(
    shards: ShardSet, inputs: Mapping[str, InputBranchSpec], outputs: Sequence[OutputBranchSpec]
) -> Iterator[list[tuple[str, bytes]]]:
    """Yield, for each sample, kind and key of each medium (of the caption of one to generate)."""
    text_columns = ["turns", "lineage"] if outputs else []
    row = 0
    for table in shards.batches(["media.kind", "media.sha256", *text_columns]):
        for entry in table.to_pylist():
            kinds, texts = entry["media.kind"], []
            if outputs:
                turns = [Turn(**turn) for turn in entry["turns"]]
                kinds = branch_kinds(turns, kinds, outputs)
                texts = captions(turns, dict(entry["lineage"] or ()))
            yield [
                (kind, medium_key(_digest(digest, row, number), inputs[kind]))
                if kind in inputs
                else (kind, text_key(texts[number]) if texts else b"")
                for number, (kind, digest) in enumerate(
                    zip(kinds, entry["media.sha256"], strict=True)
                )
            ]
            row += 1


def _digest(declared: str, row: int, number: int) -> bytes:
    """Return the sha256 in the shards, or a unique value where there is no valid one."""
    try:
        digest = bytes.fromhex(declared)
    except ValueError:
        digest = b""
    return digest if len(digest) == _DIGEST_BYTES else f"{row} {number}".encode()


def _encode(
    pool: WorkerPool,
    make: Callable[[], PrecomputeWorker],
    ranges: Sequence[MediaRange],
    counts: Mapping[str, MediaCount],
) -> list[UnreadableMedium]:
    """Encode the ranges on the workers; update the counts."""
    unreadable: list[UnreadableMedium] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("encode", total=sum(len(item.media_k2) for item in ranges))
        for result in pool.map_unordered("precompute", make, ranges):
            assert isinstance(result, RangeResult)
            count = counts[result.kind]
            count.encoded += result.encoded
            count.cached += result.cached
            count.unreadable += len(result.unreadable)
            unreadable += result.unreadable
            progress.update(task, advance=result.media)
    return unreadable


def _write_unreadable(
    stores: Mapping[str, FeatureStore], data: str, unreadable: Sequence[UnreadableMedium]
) -> None:
    """List the media of these data that have no features, and why."""
    for kind, store in stores.items():
        entries = [vars(one) for one in unreadable if one.kind == kind]
        if entries:
            path = store.folder / f"unreadable-{kind}-{data[:16]}.json"
            write_json(path, entries)
            log.warning("%s: %d of %s cannot be read", path, len(entries), kind)


def _print_counts(counts: Mapping[str, MediaCount], seconds: float, *, as_json: bool) -> None:
    if as_json:
        value = {"kinds": {k: asdict(c) for k, c in counts.items()}, "encoding_seconds": seconds}
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return
    table = Table("media", "distinct", "cached", "encoded", "unreadable", "encoder")
    for kind, count in counts.items():
        numbers = (count.distinct, count.cached, count.encoded, count.unreadable)
        table.add_row(kind, *(f"{number:,}" for number in numbers), count.encoder)
    Console().print(table)
