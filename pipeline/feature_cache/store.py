"""The features of one encoder: a folder of complete files, and the index of their keys.

    DIR/ENCODER/encoder.json          the encoder: role, spec, fingerprint of the weights, type
    DIR/ENCODER/part-….arrow          see `feature_file.py`
    DIR/ENCODER/part-….arrow.damaged  a file that was quarantined

Any number of processes add files at the same time without locks: files are renamed into place, and
the same key in two files does no harm. A process reads the files that were there when it opened
the store.

Shapes: k keys.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from etl.cli import UserError
from etl.storage.atomic import write_json
from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.feature_file import DamagedFileError, FeatureFile

log = logging.getLogger(__name__)

_ABANDONED_S = 24 * 3600
"""Age at which a file with a temporary name is taken to be a killed writer's."""
_ROW_BITS = 32


class FeatureStore:
    """One encoder's features; can be pickled for other processes, which open the files themselves.

    The index takes 16 bytes per key: the first 8 of the key, sorted, and the location of its row. A
    reader compares the whole key, which is in the file.

    Args:
        folder: of the cache.
        encoder: whose features.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path, encoder: EncoderId) -> None:
        self.folder = folder / encoder.key
        self._encoder = encoder
        self._files: list[FeatureFile] | None = None
        file = self.folder / "encoder.json"
        if file.is_file() and not _holds(file, encoder.to_json()):
            raise UserError(f"{file}: not of this encoder; remove {self.folder}")

    def create(self) -> None:
        """Create the folder and write the encoder's identity into it.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "encoder.json", self._encoder.to_json())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def contains(self, prefixes_k: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which keys the store holds, given their first 8 bytes; reads no features.

        Raises:
            DamagedFileError: a file cannot be opened.
        """
        self._open()
        found_k = self._prefixes.searchsorted(prefixes_k)
        found_k[found_k == len(self._prefixes)] = 0
        if not len(self._prefixes):
            return np.zeros(len(prefixes_k), dtype=bool)
        held: NDArray[np.bool_] = self._prefixes[found_k] == prefixes_k
        return held

    def get(self, key: bytes) -> Tensor | str:
        """Return a copy of the features for a key, or why their medium is unreadable.

        Raises:
            DamagedFileError: they are not as they were written, or there are none.
        """
        files = self._open()
        prefix = np.frombuffer(key[:8], np.uint64)[0]
        number = int(self._prefixes.searchsorted(prefix))
        while number < len(self._prefixes) and self._prefixes[number] == prefix:
            file, row = divmod(int(self._locations[number]), 1 << _ROW_BITS)
            if files[file].key(row) == key:
                return files[file].read(row)
            number += 1
        raise DamagedFileError(f"{self.folder}: no features for key {key.hex()}")

    def unreadable(self) -> dict[int, str]:
        """Return why media are unreadable, by the first 8 bytes of their keys."""
        return {
            int.from_bytes(file.key(row)[:8], "little"): str(file.read(row))
            for file in self._open()
            for row in file.unreadable()
        }

    def _open(self) -> list[FeatureFile]:
        if self._files is None:
            files = [FeatureFile(path) for path in self._paths()]
            prefixes = [file.key_prefixes() for file in files]
            locations = [
                (number << _ROW_BITS) + np.arange(len(file), dtype=np.uint64)
                for number, file in enumerate(files)
            ]
            none = np.zeros(0, dtype=np.uint64)
            prefixes_k = np.concatenate([none, *prefixes])
            order_k = prefixes_k.argsort(kind="stable")
            self._prefixes = prefixes_k[order_k]
            self._locations = np.concatenate([none, *locations])[order_k]
            self._files = files
        return self._files

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.arrow"))

    def quarantine_damaged(self, *, read: bool = True) -> list[str]:
        """Rename damaged files, whose features are then to be computed again; return their names.

        Temporary files of killed writers are removed, too.

        Args:
            read: compare the checksums of all rows; else only open the files.
        """
        for partial in self.folder.glob(".*.partial"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink(missing_ok=True)
        damaged = [path for path in self._paths() if not _is_valid(path, read=read)]
        for path in damaged:
            path.rename(path.with_name(f"{path.name}.damaged"))
        self._files = None
        return [path.name for path in damaged]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the files and the index."""
        return {"folder": self.folder, "_encoder": self._encoder, "_files": None}


def feature_stores(folder: Path, encoders: Mapping[str, EncoderId]) -> dict[str, FeatureStore]:
    """Return the store of each kind of media; kinds that share an encoder share the store."""
    by_key = {encoder.key: FeatureStore(folder, encoder) for encoder in encoders.values()}
    return {kind: by_key[encoder.key] for kind, encoder in encoders.items()}


def _is_valid(path: Path, *, read: bool) -> bool:
    try:
        file = FeatureFile(path)
        for row in range(len(file) if read else 0):
            file.read(row)
    except DamagedFileError as error:
        log.warning("%s; its features are computed again", error)
        return False
    return True


def _holds(path: Path, value: object) -> bool:
    try:
        held: object = json.loads(path.read_bytes())
    except ValueError:
        return False
    return held == value
