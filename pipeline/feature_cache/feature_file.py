"""A file of features: written atomically, memory-mapped, with a checksum per row.

    key     the cache key (pipeline.feature_cache.cache_key)
    shape   of the features
    dtype   PyTorch's name of their type, or `unreadable`
    data    their bytes, contiguous; of an unreadable medium the reason, in UTF-8
    crc32   of all other columns

Shapes: k rows.
"""

from __future__ import annotations

import itertools
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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


_UNREADABLE = "unreadable"


class DamagedFileError(ValueError):
    """A file with other content than was written; the message names it."""


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """The features of one medium or text, or why the medium is unreadable, and their key."""

    key: bytes
    features: Tensor | str


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
        shape, dtype, data = _content(row.features)
        crc32 = _checksum(row.key, shape, dtype, data)
        entries.append(
            {"key": row.key, "shape": shape, "dtype": dtype, "data": data, "crc32": crc32}
        )
        size += len(data)
        if size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(entries, schema=SCHEMA)
            entries, size = [], 0
    if entries:
        yield pa.RecordBatch.from_pylist(entries, schema=SCHEMA)


def _content(features: Tensor | str) -> tuple[list[int], str, bytes]:
    """Return shape, dtype and data of a row."""
    if isinstance(features, str):
        return [], _UNREADABLE, features.encode()
    flat = features.detach().cpu().contiguous().reshape(-1)
    dtype = str(features.dtype).removeprefix("torch.")
    return list(features.shape), dtype, flat.view(torch.uint8).numpy().tobytes()


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
        self._path = path
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
                if not reader.schema.equals(SCHEMA):
                    raise self._damaged("not the columns of a file of features")
                self._table = reader.read_all()
            self._table.validate(full=True)  # a wrong offset would read outside the file
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from None
        if not len(self):
            raise self._damaged("no rows")

    def __len__(self) -> int:
        return self._table.num_rows

    def key_prefixes(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each key as a number (k,)."""
        numbers = KEY_BYTES // 8
        keys = [
            np.frombuffer(chunk.buffers()[1], np.uint64, count=numbers * len(chunk))
            for chunk in self._table["key"].chunks
        ]
        return np.concatenate(keys)[::numbers]

    def key(self, row: int) -> bytes:
        """Return the key of a row."""
        key: bytes = self._table["key"][row].as_py()
        return key

    def unreadable(self) -> list[int]:
        """Return the rows of unreadable media."""
        mask = np.asarray(pc.equal(self._table["dtype"], _UNREADABLE))
        return [int(row) for row in mask.nonzero()[0]]

    def read(self, row: int) -> Tensor | str:
        """Return a copy of the features of a row, or why its medium is unreadable.

        Raises:
            DamagedFileError: their checksum does not match.
        """
        columns = ("key", "shape", "dtype", "crc32")
        key, shape, dtype, crc32 = (self._table[name][row].as_py() for name in columns)
        data = memoryview(self._table["data"][row].as_buffer())
        if _checksum(key, shape, dtype, data) != crc32:
            raise self._damaged(f"wrong checksum in row {row}")
        if dtype == _UNREADABLE:
            return bytes(data).decode()
        flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        return flat.view(_DTYPES[dtype]).reshape(shape)

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(f"{self._path}: damaged ({' '.join(reason.split())})")
