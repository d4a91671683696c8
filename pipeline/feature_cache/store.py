"""The cached features of one encoder: a folder to which complete files are added.

    DIR/ENCODER/encoder.json          the encoder: role, spec, fingerprint of the weights, type
    DIR/ENCODER/part-….arrow          see `feature_file.py`
    DIR/ENCODER/part-….arrow.damaged  a file that was quarantined

Any number of processes read and add at the same time without locks: files are renamed into place,
and the same key in two files does no harm. A killed writer loses only what it had not written yet.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from etl.cli import UserError
from etl.storage.atomic import write_json
from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.feature_file import DamagedFileError, FeatureFile
from pipeline.feature_cache.index import Index

log = logging.getLogger(__name__)

_CLOCK_RESOLUTION_NS = 10**9
_ABANDONED_S = 24 * 3600
"""Age at which a file with a temporary name is taken to be a killed writer's."""


class FeatureStore:
    """One encoder's features; can be pickled for other processes, which open the files themselves.

    Args:
        folder: of the cache.
        encoder: whose features.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path, encoder: EncoderId) -> None:
        self.folder = folder / encoder.key
        self._encoder = encoder
        file = self.folder / "encoder.json"
        if file.is_file() and _read_json(file) != encoder.to_json():
            raise UserError(f"{file}: not of this encoder; remove {self.folder}")
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._index = Index()
        self._files: list[FeatureFile | None] = []
        self._opened: set[str] = set()
        self._changed_ns = -1

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

    @property
    def writable(self) -> bool:
        """Whether features can be added."""
        return self.folder.is_dir() and os.access(self.folder, os.W_OK)

    def __len__(self) -> int:
        """Return the rows of all valid files; a key in two files counts twice."""
        self.refresh()
        return sum(len(file) for file in self._files if file is not None)

    def __contains__(self, key: bytes) -> bool:
        """Whether there are features for a key; does not read them."""
        return self._find(key) is not None

    def get(self, key: bytes) -> Tensor | None:
        """Return a copy of the features for a key, or None.

        A damaged file is reported once and not read again.
        """
        while (location := self._find(key)) is not None:
            number, row = location
            file = self._files[number]
            assert file is not None
            try:
                return file.read(row)
            except DamagedFileError as error:
                _warn_damaged(file.path, error)
                self._files[number] = None
        return None

    def refresh(self) -> None:
        """Open the files that were added since; thread-safe."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._changed_ns:
            return
        # A folder's mtime is coarse: a file added right after this one may not change it.
        settled = time.time_ns() - changed_ns > _CLOCK_RESOLUTION_NS
        self._changed_ns = changed_ns if settled else -1
        for name in sorted(self._names() - self._opened):
            self._opened.add(name)
            try:
                file = FeatureFile(self.folder / name)
            except DamagedFileError as error:
                _warn_damaged(self.folder / name, error)
                continue
            self._files.append(file)
            self._index.add(len(self._files) - 1, file.key_prefixes())

    def _find(self, key: bytes) -> tuple[int, int] | None:
        """Return file and row of a key's features; looks for new files if there is none."""
        found = self._find_in_index(key)
        if found is None:
            self.refresh()
            found = self._find_in_index(key)
        return found

    def _find_in_index(self, key: bytes) -> tuple[int, int] | None:
        for number, row in self._index.find(key):
            file = self._files[number]
            if file is not None and file.key(row) == key:
                return number, row
        return None

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.glob("part-*.arrow")}

    def quarantine_damaged(self) -> list[str]:
        """Read all files; rename damaged ones, to be computed again. Returns their names.

        Temporary files of killed writers are removed, too.
        """
        for partial in self.folder.glob(".*.partial"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)
        damaged = [name for name in sorted(self._names()) if not _is_valid(self.folder / name)]
        for name in damaged:
            (self.folder / name).rename(self.folder / f"{name}.damaged")
        self._reset()
        return damaged

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the files and the index."""
        return {"folder": self.folder, "_encoder": self._encoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _is_valid(path: Path) -> bool:
    try:
        file = FeatureFile(path)
        for row in range(len(file)):
            file.read(row)
    except DamagedFileError as error:
        _warn_damaged(path, error)
        return False
    return True


def _warn_damaged(path: Path, error: DamagedFileError) -> None:
    reason = " ".join(str(error).split())
    log.warning("%s: damaged (%s); its features are computed again", path, reason)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove it") from None
