"""Arrow shards on disk: written atomically, described by a manifest, read at random.

A folder holds `shard-00000.arrow …` (Arrow IPC *files* of `etl.storage.schema.SCHEMA`) and
`manifest.json`, which is written last: its presence means "complete". Imports neither Ray
nor torch.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from etl.cli import UserError
from etl.storage.atomic import atomic_file, file_sha256, write_json
from etl.storage.fingerprint import Stamp, stamp_of, still
from etl.storage.schema import SCHEMA, Sample, from_row, to_batch

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MAX_BATCH_ROWS = 256
MAX_BATCH_BYTES = 64 << 20
"""Media bytes after which a record batch is closed early, so that a batch of videos stays small."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a folder; `path` is relative to the folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete folder holds, what it was made of, and what was dropped on the way.

    Raises:
        ValueError: the counts do not add up; a row would have vanished or come twice.
    """

    job: str
    plan: Mapping[str, Any]
    input_rows: int
    rows: int
    drops: Mapping[str, int]
    shards: tuple[Shard, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.input_rows != self.rows + sum(self.drops.values()):
            raise ValueError(
                f"{self.input_rows} input rows are not {self.rows} rows"
                f" + {sum(self.drops.values())} drops"
            )
        if self.rows != sum(shard.rows for shard in self.shards):
            raise ValueError(f"{self.rows} rows, but the shards hold another number")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a folder complete."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UserError: the folder or its manifest is missing, unreadable or of another version.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}; not complete, or not written by an ETL job")
    try:
        value = json.loads(path.read_bytes())
        version = value["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema version {version}, want {SCHEMA_VERSION}")
        shards = tuple(Shard(**shard) for shard in value.pop("shards"))
        return Manifest(shards=shards, **value)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest ({error})") from None


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> Shard:
    """Write one shard atomically, in record batches bounded by rows and by media bytes."""
    path = folder / name
    rows = 0
    with atomic_file(path) as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
        for batch in _batches(samples):
            writer.write_batch(batch)
            rows += batch.num_rows
    return Shard(path=name, rows=rows, bytes=path.stat().st_size, sha256=file_sha256(path))


def _batches(samples: Iterable[Sample]) -> Iterator[pa.RecordBatch]:
    pending: list[Sample] = []
    size = 0
    for sample in samples:
        pending.append(sample)
        size += sum(len(medium.data) for medium in sample.media)
        if len(pending) == MAX_BATCH_ROWS or size >= MAX_BATCH_BYTES:
            yield to_batch(pending)
            pending, size = [], 0
    if pending:
        yield to_batch(pending)


def copy_rows(
    source: Path,
    target: Path,
    keep: pa.Array,
    change: Callable[[pa.Table, int], pa.Table] | None = None,
) -> Shard:
    """Write some rows of a shard as another, a record batch at a time: memory is that of a batch.

    Args:
        source: a shard.
        target: the file to write.
        keep: for every row whether it is wanted.
        change: what is to become of rows that are kept; it is told how many came before them.
    """
    rows = first = 0
    with (
        pa.memory_map(str(source)) as mapped,
        pa.ipc.open_file(mapped) as reader,
        atomic_file(target) as stream,
        pa.ipc.new_file(stream, SCHEMA) as writer,
    ):
        for number in range(reader.num_record_batches):
            batch = pa.Table.from_batches([reader.get_batch(number)])
            kept = batch.filter(keep.slice(first, batch.num_rows))
            first += batch.num_rows
            if kept.num_rows:
                writer.write_table(change(kept, rows) if change else kept)
                rows += kept.num_rows
    return Shard(
        path=target.name, rows=rows, bytes=target.stat().st_size, sha256=file_sha256(target)
    )


def write_folder(
    folder: Path,
    samples: Iterable[Sample],
    *,
    job: str,
    plan: Mapping[str, Any] | None = None,
    rows_per_shard: int = 4096,
) -> Path:
    """Write samples that are all to be kept as a complete folder of shards; returns the folder."""
    source = iter(samples)
    shards: list[Shard] = []
    for first in source:
        part = itertools.chain([first], itertools.islice(source, rows_per_shard - 1))
        shards.append(write_shard(folder, shard_name(len(shards)), part))
    rows = sum(shard.rows for shard in shards)
    manifest = Manifest(
        job=job, plan=plan or {}, input_rows=rows, rows=rows, drops={}, shards=tuple(shards)
    )
    write_manifest(folder, manifest)
    return folder


def shard_name(number: int) -> str:
    """File name of a folder's `number`-th shard."""
    return f"shard-{number:05d}.arrow"


class ShardSet:
    """The samples of one or more folders of shards, in order, read at random from memory maps.

    It may be pickled to other processes; each opens the files it needs by itself. Before every
    read a file is looked at: one that changes while it is mapped would give other samples, and one
    that is cut off would end the process (as it still does if that happens in the midst of a read).

    Args:
        folders: complete folders, in the order in which their samples are numbered.
        verify: compare every shard's sha256 with its manifest (reads all bytes once). Sizes are
            always compared.

    Raises:
        UserError: a folder is missing, incomplete or empty, or a shard is missing or damaged.
    """

    def __init__(self, folders: Sequence[Path], *, verify: bool = True) -> None:
        self._paths: list[Path] = []
        self._digests: list[str] = []
        self._stamps: list[Stamp] = []
        self._folder_ends: list[int] = []
        ends: list[int] = []
        digests = hashlib.sha256()
        for folder in map(Path, folders):
            manifest = read_manifest(folder)
            if not manifest.rows:
                raise UserError(f"{folder}: holds no samples (0 rows)")
            for shard in manifest.shards:
                self._stamps.append(_check_shard(folder, shard, verify=verify))
                self._digests.append(shard.sha256)
                self._paths.append(folder / shard.path)
                ends.append((ends[-1] if ends else 0) + shard.rows)
                digests.update(shard.sha256.encode())
            self._folder_ends.append(ends[-1])
        if not ends:
            raise UserError("no data folder given")
        self._ends = ends
        self._open: dict[int, _OpenShard] = {}
        self.fingerprint = digests.hexdigest()
        """Identity of the data: sha256 over the shards' sha256s, in order."""

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; a negative one counts from the end, as in a list.

        Raises:
            UserError: its shard has vanished or changed.
        """
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return self._shard(number).sample(index - first)

    def folder(self, index: int) -> int:
        """The number of the folder that the sample at `index` lies in."""
        return bisect.bisect_right(self._folder_ends, index)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of all samples, for planning.

        Args:
            names: columns of the schema, or `media.FIELD` for one field of all of a sample's media
                (a list column, such as `media.width`).

        Raises:
            ValueError: the media's bytes are asked for; they are read by sample only.
        """
        return pa.concat_tables(self.batches(names))

    def batches(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """The same columns, one record batch after the other; see `columns`."""
        heavy = {"media", "media.data"} & set(names)
        if heavy:
            raise ValueError(f"{sorted(heavy)}: media bytes are read by sample, not by column")
        for number in range(len(self._paths)):
            for batch in self._shard(number).batches:
                yield pa.table([_column(batch, name) for name in names], names=list(names))

    def _shard(self, number: int) -> _OpenShard:
        path, digest = self._paths[number], self._digests[number]
        then = self._stamps[number]
        now = still(path, then, sha256=digest, mapped=number in self._open)
        if now != then and now is not None:  # the same bytes in another file, perhaps
            self._stamps[number] = now
            self._open.pop(number, None)
        if number not in self._open:
            self._open[number] = _OpenShard(self._paths[number])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        return {**self.__dict__, "_open": {}}


class _OpenShard:
    """One memory-mapped shard and where its record batches end."""

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not an Arrow IPC file ({error})") from None
        if not reader.schema.equals(SCHEMA):
            raise UserError(f"{path}: its columns are not those of schema {SCHEMA_VERSION}")
        self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self.batches))

    def sample(self, index: int) -> Sample:
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return from_row(self.batches[number].slice(index - first, 1).to_pylist()[0])


def read_samples(folder: Path, manifest: Manifest, number: int) -> list[Sample]:
    """The first samples of a folder whose manifest may not be written yet."""
    samples: list[Sample] = []
    for shard in manifest.shards:
        opened = _OpenShard(folder / shard.path)
        wanted = min(number - len(samples), shard.rows)
        samples.extend(opened.sample(index) for index in range(wanted))
    return samples


def _check_shard(folder: Path, shard: Shard, *, verify: bool) -> Stamp:
    path = folder / shard.path
    if not path.is_file():
        raise UserError(f"{path}: shard is missing, though {folder / MANIFEST} lists it")
    stamp = stamp_of(path)
    if stamp.size != shard.bytes:
        raise UserError(
            f"{path}: shard is damaged: {stamp.size} bytes, its manifest says {shard.bytes}"
        )
    if verify and (found := file_sha256(path)) != shard.sha256:
        raise UserError(
            f"{path}: shard is damaged: sha256 {found[:12]}…, its manifest says"
            f" {shard.sha256[:12]}…"
        )
    return stamp


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """One column, or one field of a list of structs as a list column, without copying the rest."""
    column, _, inner = name.partition(".")
    array = batch.column(column)
    if not inner:
        return array
    return pa.ListArray.from_arrays(array.offsets, array.values.field(inner))
