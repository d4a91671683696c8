"""Precompute the feature cache: a job over the distinct media of data folders.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from etl.cli import UserError, parse
from etl.runtime.executor import ExecutorName, open_executor
from etl.storage.atomic import write_json
from etl.storage.shards import ShardSet
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.config.run_config import (
    PresetOptions,
    RunConfig,
    StageName,
    default_options,
    resolve,
)
from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.distinct_media import DistinctMedia, distinct_media
from pipeline.feature_cache.store import FeatureStore, feature_stores
from pipeline.feature_cache.worker import MediaRange, PrecomputeWorker

log = logging.getLogger(__name__)

_THREADS = 4
"""Threads of a worker without a GPU: an encoder per CPU would take too much memory."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions(PresetOptions):
    """Precompute a feature cache: encode each medium once, for `--feature-cache`.

    Runs on the Ray cluster at RAY_ADDRESS, or else in processes on this machine; one worker
    per GPU, or per four CPUs. The same command resumes after a kill.
    """

    output: Path
    """The cache, as given to training as --feature-cache; may hold other encoders' features."""
    data: tuple[Path, ...] = ()
    """Folders of Arrow shards. Default: those of the run's config.json, validation data, too."""
    stage: StageName = "pt"
    """The stage that will read it: determines which encoders are frozen, and their precision."""
    part: str | None = None
    """Of the stage `init`, where the preset pre-trains several."""
    init_from: Path | None = None
    """As in training: a run that may have trained an encoder that is frozen in this stage."""
    init_checkpoint: str | None = None
    """As in training. Default: newest."""
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
    """Compare the checksums of all existing files first and quarantine damaged ones."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass
class MediaCount:
    """The distinct media of one kind; `cached` ones were in the cache before, readable or not."""

    encoder: str
    distinct: int
    cached: int
    encoded: int = 0
    unreadable: int = 0


def precompute(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(PrecomputeOptions, prog="python -m pipeline features", args=args)
    for name in ("media_per_file", "batch"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: want 1 or more")
    run = _run_config(options)
    shards = ShardSet([Path(folder) for folder in run.data])
    initial = (
        checkpoint_weights(Path(run.init_from), run.init_checkpoint) if run.init_from else None
    )
    with _start_workers(run, initial, options) as process:
        (encoder_ids,) = process([None])  # encoders are built by the workers alone
        stores = _clean_stores(run, encoder_ids, verify=options.verify)
        outputs = run.settings.output_branches(run.system.model)
        media = distinct_media(shards, run.system.model, outputs, stores)
        counts, ranges = plan_ranges(media, stores, options.media_per_file)
        started = time.monotonic()
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("encode", total=sum(len(item.media_k2) for item in ranges))
            for done in process(ranges):
                counts[done.kind].encoded += done.encoded
                progress.update(task, advance=done.media)
        seconds = time.monotonic() - started
    for kind, store in feature_stores(Path(run.output), encoder_ids).items():
        counts[kind].unreadable = _list_unreadable(shards, kind, media[kind], store)
    _print_counts(counts, seconds, as_json=options.json)
    return 0


def _run_config(options: PrecomputeOptions) -> RunConfig:
    """Return the training run that would read the cache; its output is the cache's folder."""
    default = default_options(options, options.stage, part=options.part)
    data = (*default.data, *default.validation_data)
    default = replace(default, data=data, validation_data=(), validate_every=None)
    names = ("data", "output", "init_from", "init_checkpoint", "weights", "seed", "precision")
    given = {name: value for name in names if (value := getattr(options, name)) not in (None, ())}
    return resolve(replace(default, **given), options.stage)


@contextlib.contextmanager
def _start_workers(
    run: RunConfig, initial: Path | None, options: PrecomputeOptions
) -> Iterator[Callable[[Sequence[MediaRange | None]], Iterator[Any]]]:
    """Start workers; yield a function that yields their results for items, in any order."""
    with open_executor(options.executor) as executor:
        cpus, gpus = executor.cpus, executor.gpus
        threads = max(1, min(2 * _THREADS, cpus // gpus)) if gpus else min(_THREADS, cpus)
        device = "cuda" if gpus else "cpu"
        make = partial(
            PrecomputeWorker, run, initial, batch=options.batch, threads=threads, device=device
        )
        size = gpus or cpus // threads
        with executor.pool(size, cpus=threads, gpus=1 if gpus else 0) as pool:
            yield partial(pool.map_unordered, "precompute", make)


def _clean_stores(
    run: RunConfig, encoder_ids: Mapping[str, EncoderId], *, verify: bool
) -> dict[str, FeatureStore]:
    """Return the store of each kind of media, without damaged files; raises UserError if none."""
    if not encoder_ids:
        raise UserError(
            f"{run.system.name}: stage {run.stage} trains all encoders; there is nothing to cache"
        )
    stores = feature_stores(Path(run.output), encoder_ids)
    for store in set(stores.values()):
        store.create()
        store.quarantine_damaged(read=verify)
    return stores


def plan_ranges(
    media: Mapping[str, DistinctMedia], stores: Mapping[str, FeatureStore], media_per_file: int
) -> tuple[dict[str, MediaCount], list[MediaRange]]:
    """Return how many distinct media of each kind there are, and the ranges to be encoded.

    Ranges have a fixed size, so that a job that resumes has the same; what is cached is left out.
    """
    counts, ranges = {}, []
    for kind, found in media.items():
        cached_k = stores[kind].contains(found.prefixes_k)
        counts[kind] = MediaCount(
            encoder=stores[kind].folder.name, distinct=len(cached_k), cached=int(cached_k.sum())
        )
        for start in range(0, len(cached_k), media_per_file):
            chosen = slice(start, start + media_per_file)
            missing_k2 = found.media_k2[chosen][~cached_k[chosen]]
            if len(missing_k2):
                ranges.append(MediaRange(kind=kind, media_k2=missing_k2))
    return counts, ranges


def _list_unreadable(shards: ShardSet, kind: str, media: DistinctMedia, store: FeatureStore) -> int:
    """List a kind's unreadable media of these data, if there are any; return how many."""
    reasons = store.unreadable()
    places = zip(media.prefixes_k.tolist(), media.media_k2[:, 0].tolist(), strict=True)
    entries = [
        {"row": row, "id": shards[row].id, "kind": kind, "reason": reasons[prefix]}
        for prefix, row in places
        if prefix in reasons
    ]
    if entries:
        path = store.folder / f"unreadable-{kind}-{shards.fingerprint[:16]}.json"
        write_json(path, entries)
        log.warning("%s: %d of %s are unreadable", path, len(entries), kind)
    return len(entries)


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
