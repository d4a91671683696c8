"""A file of features: written atomically, memory-mapped, with a checksum per row.

    key     the cache key (pipeline.feature_cache.cache_key)
    shape   of the features
    dtype   PyTorch's name of their type
    data    their bytes, contiguous
    crc32   of all other columns

Shapes: k rows.
"""

from __future__ import annotations

import bisect
import itertools
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from etl.storage.atomic import atomic_file

KEY_BYTES = 32
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
    ]
)
BATCH_BYTES = 32 << 20
"""Features after which a record batch is written, so that a writer buffers no more."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


class DamagedFileError(ValueError):
    """A file with other content than was written."""


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """The features of one medium or text, and their key."""

    key: bytes
    features: Tensor


def write_feature_file(folder: Path, rows: Iterable[FeatureRow]) -> Path | None:
    """Write rows as one file, atomically; return its path, or None if there are no rows.

    Args:
        folder: of the encoder in the cache.
        rows: on any device; read one at a time, so that they need not fit into memory together.
    """
    pending = iter(rows)
    first = next(pending, None)
    if first is None:
        return None
    path = folder / f"part-{uuid.uuid4().hex[:16]}.arrow"
    with atomic_file(path) as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
        for batch in _batches(itertools.chain([first], pending)):
            writer.write_batch(batch)
    return path


def _batches(rows: Iterable[FeatureRow]) -> Iterator[pa.RecordBatch]:
    entries: list[dict[str, object]] = []
    size = 0
    for row in rows:
        entry = _entry(row)
        entries.append(entry)
        size += row.features.numel() * row.features.element_size()
        if size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(entries, schema=SCHEMA)
            entries, size = [], 0
    if entries:
        yield pa.RecordBatch.from_pylist(entries, schema=SCHEMA)


def _entry(row: FeatureRow) -> dict[str, object]:
    shape = list(row.features.shape)
    dtype = str(row.features.dtype).removeprefix("torch.")
    data = row.features.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "key": row.key,
        "shape": shape,
        "dtype": dtype,
        "data": data,
        "crc32": _checksum(row.key, shape, dtype, data),
    }


def _checksum(key: bytes, shape: list[int], dtype: str, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(f"{shape} {dtype}".encode(), zlib.crc32(key)))


class FeatureFile:
    """A memory-mapped file of features; no file handle stays open.

    Args:
        path: of the file.

    Raises:
        DamagedFileError: not a complete file of features.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
                if not reader.schema.equals(SCHEMA):
                    raise DamagedFileError("not the columns of a file of features")
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in self._batches:
                batch.validate(full=True)  # a wrong offset would read outside the file
        except (pa.ArrowException, OSError) as error:
            raise DamagedFileError(str(error)) from None
        if not self._batches:
            raise DamagedFileError("no rows")
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1]

    def key_prefixes(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each key as a number (k,)."""
        return np.concatenate([_key_prefixes(batch) for batch in self._batches])

    def key(self, row: int) -> bytes:
        """Return the key of a row."""
        batch, index = self._find(row)
        key: bytes = batch.column("key")[index].as_py()
        return key

    def read(self, row: int) -> Tensor:
        """Return a copy of the features of a row.

        Raises:
            DamagedFileError: their checksum does not match.
        """
        batch, index = self._find(row)
        key, shape, dtype, crc32 = (
            batch.column(name)[index].as_py() for name in ("key", "shape", "dtype", "crc32")
        )
        data = memoryview(batch.column("data")[index].as_buffer())
        if _checksum(key, shape, dtype, data) != crc32:
            raise DamagedFileError(f"wrong checksum in row {row}")
        flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        return flat.view(_DTYPES[dtype]).reshape(shape)

    def _find(self, row: int) -> tuple[pa.RecordBatch, int]:
        number = bisect.bisect_right(self._ends, row)
        return self._batches[number], row - (self._ends[number - 1] if number else 0)


def _key_prefixes(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    column = batch.column("key")
    first = column.offset * KEY_BYTES
    keys = np.frombuffer(column.buffers()[1], np.uint8)[first:][: len(column) * KEY_BYTES]
    return np.ascontiguousarray(keys.reshape(-1, KEY_BYTES)[:, :8]).view(np.uint64)[:, 0]
