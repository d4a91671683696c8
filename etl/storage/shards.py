"""Arrow shards on disk: written atomically, read by index from memory maps.

A folder holds `shard-00000.arrow …` (Arrow IPC *files* of `etl.storage.schema.SCHEMA`) and
`manifest.json` (`etl.storage.manifest`). Imports neither Ray nor torch.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from etl.cli import RankError, UserError
from etl.storage.atomic import atomic_file, file_sha256
from etl.storage.fingerprint import FileFingerprint, check_unchanged, file_fingerprint
from etl.storage.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from etl.storage.schema import SCHEMA, SCHEMA_VERSION, Medium, Sample, from_row, to_batch
from etl.storage.verified import VerifiedShards

_COLUMNS = [name for name in SCHEMA.names if name != "media"]
_MEDIUM_COLUMNS = [field.name for field in fields(Medium) if field.name != "data"]

MAX_BATCH_ROWS = 256
MAX_BATCH_BYTES = 64 << 20
"""Media bytes after which a record batch is closed early, so that a batch of videos stays small."""

MAX_OPEN_SHARDS = 1024
"""Shards that a process keeps open, the ones used last; Linux allows 65,530 memory maps."""


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
    """Copy some rows of a shard to a new one, a record batch at a time, to bound memory.

    Args:
        source: a shard.
        target: the file to write.
        keep: for every row whether to copy it.
        change: maps the kept rows of a batch, and the number of rows kept before, to new rows.
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
    """Write samples as a complete folder of shards, dropping none; returns the folder."""
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
    """The samples of one or more folders of shards, in order, read by index from memory maps.

    May be pickled to other processes; each opens the files it needs by itself. A file's fingerprint
    is checked before every read: one that changes while it is mapped would return other samples,
    and one that is truncated would crash the process (which it still does during a read).

    Args:
        folders: complete folders, in the order in which their samples are numbered.
        verify: compare the sha256 of shards with their manifest, unless that was done before and
            is stamped (`etl.storage.verified`). Sizes are always compared.
        rank, ranks: this process compares every `ranks`-th shard.
        stamps: where stamps of folders are kept that are not writable.

    Raises:
        UserError: a folder is missing, incomplete or empty, or a shard is missing or damaged.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        verify: bool = True,
        rank: int = 0,
        ranks: int = 1,
        stamps: Path | None = None,
    ) -> None:
        self._paths: list[Path] = []
        self._digests: list[str] = []
        self._fingerprints: list[FileFingerprint] = []
        self._folder_ends: list[int] = []
        ends: list[int] = []
        digests = hashlib.sha256()
        for folder in map(Path, folders):
            manifest = read_manifest(folder)
            if not manifest.rows:
                raise UserError(f"{folder}: holds no samples (0 rows)")
            for shard in manifest.shards:
                self._fingerprints.append(_check_shard(folder, shard))
                self._digests.append(shard.sha256)
                self._paths.append(folder / shard.path)
                ends.append((ends[-1] if ends else 0) + shard.rows)
                digests.update(shard.sha256.encode())
            self._folder_ends.append(ends[-1])
            if verify:
                verified = VerifiedShards(folder, rank=rank, ranks=ranks, fallback=stamps)
                count = len(manifest.shards)
                fingerprints = self._fingerprints[-count:]
                share = list(zip(manifest.shards, fingerprints, strict=True))[rank::ranks]
                _verify(folder, share, verified, alone=ranks == 1)
        if not ends:
            raise UserError("no data folder given")
        self._ends = ends
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
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
        read = partial(self._medium_data, number, index - first)
        return self._shard(number).sample(index - first, read)

    def _medium_data(self, shard: int, row: int, medium: int) -> bytes:
        return self._shard(shard).medium_data(row, medium)

    def location(self, index: int) -> tuple[Path, int]:
        """The shard that holds the sample at `index`, and the sample's row in it."""
        number = bisect.bisect_right(self._ends, index)
        return self._paths[number], index - (self._ends[number - 1] if number else 0)

    def folder(self, index: int) -> int:
        """The number of the folder that holds the sample at `index`."""
        return bisect.bisect_right(self._folder_ends, index)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of all samples, for planning.

        Args:
            names: columns of the schema, or `media.FIELD` for one field of all of a sample's media
                (a list column, such as `media.width`).

        Raises:
            ValueError: media bytes are requested; they are read by sample only.
        """
        return pa.concat_tables(self.batches(names))

    def batches(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """The same columns, one record batch at a time; see `columns`."""
        heavy = {"media", "media.data"} & set(names)
        if heavy:
            raise ValueError(f"{sorted(heavy)}: media bytes are read by sample, not by column")
        for number in range(len(self._paths)):
            for batch in self._shard(number).batches:
                yield pa.table([_column(batch, name) for name in names], names=list(names))

    def _shard(self, number: int) -> _OpenShard:
        path, digest = self._paths[number], self._digests[number]
        verified = self._fingerprints[number]
        current = check_unchanged(path, verified, sha256=digest, mapped=number in self._open)
        if current != verified and current is not None:  # perhaps the same bytes in another file
            self._fingerprints[number] = current
            self._open.pop(number, None)
        if number not in self._open:
            if len(self._open) == MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[number] = _OpenShard(self._paths[number])
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps."""
        return {**self.__dict__, "_open": OrderedDict()}


class _OpenShard:
    """One memory-mapped shard and the end index of each of its record batches."""

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not an Arrow IPC file ({error})") from None
        if not reader.schema.equals(SCHEMA):
            raise UserError(f"{path}: its columns are not those of schema version {SCHEMA_VERSION}")
        self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self.batches))

    def sample(self, index: int, read: Callable[[int], bytes] | None = None) -> Sample:
        """The sample of a row; `read` returns the data of its n-th medium."""
        batch, place = self._find(index)
        row = {name: batch.column(name)[place].as_py() for name in _COLUMNS}
        media = batch.column("media")[place].values
        columns = [media.field(name).to_pylist() for name in _MEDIUM_COLUMNS]
        rows = zip(*columns, strict=True)
        row["media"] = [dict(zip(_MEDIUM_COLUMNS, each, strict=True)) for each in rows]
        return from_row(row, read or partial(self.medium_data, index))

    def medium_data(self, index: int, medium: int) -> bytes:
        """The data of the n-th medium of a row."""
        batch, place = self._find(index)
        data: bytes = batch.column("media")[place].values.field("data")[medium].as_py()
        return data

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The record batch that holds a row, and the row's place in it."""
        number = bisect.bisect_right(self._ends, index)
        return self.batches[number], index - (self._ends[number - 1] if number else 0)


def read_samples(folder: Path, manifest: Manifest, number: int) -> list[Sample]:
    """The first samples of a folder whose manifest need not be on disk yet."""
    samples: list[Sample] = []
    for shard in manifest.shards:
        opened = _OpenShard(folder / shard.path)
        count = min(number - len(samples), shard.rows)
        samples.extend(opened.sample(index) for index in range(count))
    return samples


def _check_shard(folder: Path, shard: Shard) -> FileFingerprint:
    """Return the fingerprint of a shard that has the size that its manifest says."""
    path = folder / shard.path
    if not path.is_file():
        raise UserError(f"{path}: shard is missing, though {folder / MANIFEST} lists it")
    fingerprint = file_fingerprint(path)
    if fingerprint.size != shard.bytes:
        raise UserError(
            f"{path}: shard is damaged: {fingerprint.size} bytes, its manifest says {shard.bytes}"
        )
    return fingerprint


def _verify(
    folder: Path,
    shards: Sequence[tuple[Shard, FileFingerprint]],
    verified: VerifiedShards,
    *,
    alone: bool,
) -> None:
    """Compare the checksums of shards with their manifest, except for those stamped."""
    try:
        for shard, fingerprint in shards:
            if (shard, fingerprint) in verified:
                continue
            path = folder / shard.path
            if (found := file_sha256(path)) != shard.sha256:
                raise (UserError if alone else RankError)(
                    f"{path}: shard is damaged: sha256 {found[:12]}…, its manifest says"
                    f" {shard.sha256[:12]}…"
                )
            verified.add(shard, fingerprint)
    finally:
        verified.save()


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or a field of a list of structs as a list column, without copying the rest."""
    column, _, inner = name.partition(".")
    array = batch.column(column)
    if not inner:
        return array
    return pa.ListArray.from_arrays(array.offsets, array.values.field(inner))
