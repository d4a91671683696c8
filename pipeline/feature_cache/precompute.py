"""Fill the feature cache beforehand: a Ray job over the distinct media of data folders.

    python -m pipeline features PRESET --data DIR… --output DIR [--stage pt|sft|init]

The plan is made of columns alone: which media there are, each once, in ranges of a fixed number; a
range of which nothing is missing is left out. A worker reads a range, decodes, encodes and writes
one file, which appears whole. The cache is the job's only ledger: killed and run again, it does
what is missing, and the ranges are the same ones.

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
import ray
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from etl.cli import UserError, parse
from etl.runtime.executor import ActorPool
from etl.runtime.ray_cluster import ray_cluster
from etl.storage.atomic import write_json
from etl.storage.schema import Turn
from etl.storage.shards import ShardSet
from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.run_config import RunConfig, Scale, StageName, TrainOptions, resolve
from pipeline.data.generation_targets import captions, ways
from pipeline.feature_cache.cache_key import medium_key, text_key
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.worker import Filled, Filler, Range, Unreadable

log = logging.getLogger(__name__)

_THREADS = 4
"""Of a worker without a GPU: an encoder for each CPU would take too much memory."""
_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions:
    """Fill a feature cache on Ray: encode each medium of the data once, for `--feature-cache`.

    Uses the cluster that RAY_ADDRESS names, or starts one on this machine; a worker for each GPU,
    or for every four CPUs. The same command goes on after a kill.
    """

    preset: tyro.conf.Positional[str]
    """A preset's name, or a run's config.json or .yaml."""
    data: tuple[Path, ...]
    """Folders of Arrow shards."""
    output: Path
    """The cache, as training takes it by --feature-cache; may hold other producers' features."""
    stage: StageName = "pt"
    """The stage that will read it: says which encoders are frozen, and their precision."""
    part: str | None = None
    """Of the stage `init`, where the preset pre-trains several."""
    init_from: Path | None = None
    """As in training: a run that may have trained an encoder which is frozen now."""
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
    part_media: int = 256
    """Media of one file, which a kill costs at most for each worker."""
    batch: int = 16
    """Media that an encoder gets at once."""
    verify: bool = True
    """Read all that is there and set aside what is damaged."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass
class Count:
    """What became of the distinct media of one kind; `known` were in the cache before."""

    distinct: int = 0
    known: int = 0
    encoded: int = 0
    unreadable: int = 0
    producer: str = ""


@dataclass
class Media:
    """The media of one kind while the data are looked through, an entry each."""

    heads: array[int] = field(default_factory=lambda: array("Q"))
    rows: array[int] = field(default_factory=lambda: array("Q"))
    places: array[int] = field(default_factory=lambda: array("I"))
    known: array[int] = field(default_factory=lambda: array("B"))

    def add(self, key: bytes, row: int, place: int, *, known: bool) -> None:
        """Note a medium: 21 bytes, of its key only the first 8."""
        self.heads.append(int.from_bytes(key[:8], "little"))
        self.rows.append(row)
        self.places.append(place)
        self.known.append(known)

    def firsts(self) -> NDArray[np.intp]:
        """Return the entries (k,) at which a key comes for the first time, in order."""
        _, first_k = np.unique(np.frombuffer(self.heads, np.uint64), return_index=True)
        return np.sort(first_k)

    def where(self, entries_k: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return row and place (k, 2) of entries."""
        columns = (np.frombuffer(self.rows, np.uint64), np.frombuffer(self.places, np.uint32))
        return np.stack([column[entries_k].astype(np.int64) for column in columns], axis=1)


def features(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(FeaturesOptions, prog="python -m pipeline features", args=args)
    for name in ("part_media", "batch"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: want 1 or more")
    run = _run(options)
    shards = ShardSet([Path(folder) for folder in run.data])
    initial = newest_weights(Path(run.init_from)) if run.init_from else None
    with ray_cluster() as cpus, _crew(cpus) as (crew, threads, device):
        make = partial(Filler, run, initial, batch=options.batch, threads=threads, device=device)
        stores = _stores(run, crew, make, verify=options.verify)
        slots: dict[str, InputBranchSpec] = {
            slot.modality: slot for slot in run.system.model.inputs
        }
        outputs = run.settings.output_branches(run.system.model)
        counts, ranges = plan(shards, slots, outputs, stores, options.part_media)
        begun = time.monotonic()
        unreadable = _fill(crew, make, ranges, counts)
        encoding = time.monotonic() - begun
    _write_unreadable(stores, shards.fingerprint, unreadable)
    _tell(counts, encoding, as_json=options.json)
    return 0


def _run(options: FeaturesOptions) -> RunConfig:
    """Return the training run that would read the cache; its output is the cache's folder."""
    shared = ("preset", "data", "output", "part", "init_from", "scale", "set", "weights", "seed")
    words = {name: getattr(options, name) for name in (*shared, "precision")}
    return resolve(TrainOptions(**words), options.stage)


@contextlib.contextmanager
def _crew(cpus: int) -> Iterator[tuple[ActorPool, int, str]]:
    """Yield workers for the cluster at hand, the threads of each, and the encoders' device."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    threads = max(1, min(2 * _THREADS, cpus // gpus)) if gpus else min(_THREADS, cpus)
    size = gpus or cpus // threads
    with ActorPool(size, cpus=threads, gpus=1 if gpus else 0) as crew:
        yield crew, threads, "cuda" if gpus else "cpu"


def _stores(
    run: RunConfig, crew: ActorPool, make: Callable[[], Filler], *, verify: bool
) -> dict[str, FeatureStore]:
    """Return a store for each kind of media whose encoder is frozen.

    A worker says who the producers are: the encoders are built where they are used.
    """
    (producers,) = crew.map_unordered("fill", make, [None])
    assert isinstance(producers, Mapping)
    if not producers:
        raise UserError(
            f"{run.system.name}: all encoders train in stage {run.stage}; there is nothing to keep"
        )
    folder = Path(run.output)
    by_key = {producer.key: FeatureStore(folder, producer) for producer in producers.values()}
    for store in by_key.values():
        store.create()
        if verify:
            store.set_aside_damaged()
    return {kind: by_key[producer.key] for kind, producer in producers.items()}


def plan(
    shards: ShardSet,
    slots: Mapping[str, InputBranchSpec],
    outputs: Sequence[OutputBranchSpec],
    stores: Mapping[str, FeatureStore],
    part_media: int,
) -> tuple[dict[str, Count], list[Range]]:
    """Return how many distinct media of each kind there are, and the ranges that lack any.

    The digests that the shards declare tell media apart; none is read. A worker goes by the
    bytes: a digest that is wrong costs a medium its place in the cache and no more. Of a medium
    that comes out, what is told of it is what counts.
    """
    media = {kind: Media() for kind in stores}
    for row, keys in enumerate(_keys(shards, slots, outputs)):
        for place, (kind, key) in enumerate(keys):
            if kind in media:
                media[kind].add(key, row, place, known=key in stores[kind])
    counts, ranges = {}, []
    for kind, found in media.items():
        first_k = found.firsts()
        known_k = np.frombuffer(found.known, np.uint8)[first_k].astype(bool)
        counts[kind] = Count(
            distinct=len(first_k), known=int(known_k.sum()), producer=stores[kind].folder.name
        )
        for start in range(0, len(first_k), part_media):
            chosen = slice(start, start + part_media)
            missing_k = first_k[chosen][~known_k[chosen]]
            if len(missing_k):
                ranges.append(Range(kind=kind, places_k2=found.where(missing_k)))
    return counts, ranges


def _keys(
    shards: ShardSet, slots: Mapping[str, InputBranchSpec], outputs: Sequence[OutputBranchSpec]
) -> Iterator[list[tuple[str, bytes]]]:
    """Yield, of each row, the kind and the key of each medium (of what is told of it)."""
    drawing = ["turns", "lineage"] if outputs else []
    row = 0
    for table in shards.batches(["media.kind", "media.sha256", *drawing]):
        for entry in table.to_pylist():
            kinds, told = entry["media.kind"], []
            if outputs:
                turns = [Turn(**turn) for turn in entry["turns"]]
                kinds = ways(turns, kinds, outputs)
                told = captions(turns, dict(entry["lineage"] or ()))
            yield [
                (kind, medium_key(_digest(digest, row, place), slots[kind]))
                if kind in slots
                else (kind, text_key(told[place]) if told else b"")
                for place, (kind, digest) in enumerate(
                    zip(kinds, entry["media.sha256"], strict=True)
                )
            ]
            row += 1


def _digest(declared: str, row: int, place: int) -> bytes:
    """Return a declared sha256, or what no other medium has where that is none."""
    try:
        digest = bytes.fromhex(declared)
    except ValueError:
        digest = b""
    return digest if len(digest) == _DIGEST_BYTES else f"{row} {place}".encode()


def _fill(
    crew: ActorPool,
    make: Callable[[], Filler],
    ranges: Sequence[Range],
    counts: Mapping[str, Count],
) -> list[Unreadable]:
    """Have workers fill the ranges; counts what became of the media."""
    unreadable: list[Unreadable] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("encode", total=sum(len(item.places_k2) for item in ranges))
        for filled in crew.map_unordered("fill", make, ranges):
            assert isinstance(filled, Filled)
            count = counts[filled.kind]
            count.encoded += filled.encoded
            count.known += filled.there
            count.unreadable += len(filled.unreadable)
            unreadable += filled.unreadable
            progress.update(task, advance=filled.media)
    return unreadable


def _write_unreadable(
    stores: Mapping[str, FeatureStore], data: str, unreadable: Sequence[Unreadable]
) -> None:
    """Write down which media of these data have no features, and why."""
    for kind, store in stores.items():
        entries = [vars(one) for one in unreadable if one.kind == kind]
        if entries:
            path = store.folder / f"unreadable-{kind}-{data[:16]}.json"
            write_json(path, entries)
            log.warning("%s: %d of %s cannot be read", path, len(entries), kind)


def _tell(counts: Mapping[str, Count], seconds: float, *, as_json: bool) -> None:
    if as_json:
        value = {"kinds": {k: asdict(c) for k, c in counts.items()}, "encoding_seconds": seconds}
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return
    table = Table("media", "distinct", "known", "encoded", "unreadable", "producer")
    for kind, count in counts.items():
        figures = (count.distinct, count.known, count.encoded, count.unreadable)
        table.add_row(kind, *(f"{figure:,}" for figure in figures), count.producer)
    Console().print(table)
