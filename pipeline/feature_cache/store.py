"""What producers have made so far, in a folder that only ever gains whole files.

    DIR/PRODUCER/producer.json         who made it: role, spec, fingerprint of the weights, type
    DIR/PRODUCER/part-….arrow          see `parts.py`
    DIR/PRODUCER/part-….arrow.damaged  one that was set aside

Any number of processes read and add at the same time, and none waits for another: files are
renamed into place, and the same key in two of them does no harm. A killed writer loses what it had
not yet written, and nothing else.
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
from pipeline.feature_cache.cache_key import Producer
from pipeline.feature_cache.feature_file import DamagedError, Part
from pipeline.feature_cache.index import Index

log = logging.getLogger(__name__)

_SETTLED_NS = 10**9
_ABANDONED_S = 24 * 3600
"""Age from which a file under its temporary name is taken for a killed writer's."""


class FeatureStore:
    """One producer's features; may be pickled to other processes, which open it by themselves.

    Args:
        folder: of all producers.
        producer: whose features.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path, producer: Producer) -> None:
        self.folder = folder / producer.key
        self._producer = producer
        said = self.folder / "producer.json"
        if said.is_file() and _read_json(said) != producer.to_json():
            raise UserError(f"{said}: not of this producer; remove {self.folder}")
        self._forget()

    def _forget(self) -> None:
        self._looking = threading.Lock()
        self._index = Index()
        self._parts: list[Part | None] = []
        self._known: set[str] = set()
        self._changed_ns = -1

    def create(self) -> None:
        """Make the folder and say in it who the producer is.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "producer.json", self._producer.to_json())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None

    @property
    def writable(self) -> bool:
        """Whether features can be added."""
        return self.folder.is_dir() and os.access(self.folder, os.W_OK)

    def __len__(self) -> int:
        """Rows of all sound files; a key that stands in two counts twice."""
        self.refresh()
        return sum(len(part) for part in self._parts if part is not None)

    def __contains__(self, key: bytes) -> bool:
        """Whether there are features under a key; does not read them."""
        return self._place(key) is not None

    def get(self, key: bytes) -> Tensor | None:
        """Return a copy of the features under a key, or None.

        A file in which something is damaged is told once and read no more.
        """
        while (place := self._place(key)) is not None:
            number, row = place
            part = self._parts[number]
            assert part is not None
            try:
                return part.read(row)
            except DamagedError as error:
                self._give_up(number, error)
        return None

    def refresh(self) -> None:
        """Look for files that were added since; any thread may."""
        with self._looking:
            self._refresh()

    def _refresh(self) -> None:
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._changed_ns:
            return
        # A folder's time is coarse: what follows at once may not change it.
        settled = time.time_ns() - changed_ns > _SETTLED_NS
        self._changed_ns = changed_ns if settled else -1
        for name in sorted(self._names() - self._known):
            self._known.add(name)
            try:
                part = Part(self.folder / name)
            except DamagedError as error:
                _tell_damaged(self.folder / name, error)
                continue
            self._parts.append(part)
            self._index.add(len(self._parts) - 1, part.heads())

    def _place(self, key: bytes) -> tuple[int, int] | None:
        """Return where a key's features lie; looks for new files where they are not known."""
        found = self._known_place(key)
        if found is None:
            self.refresh()
            found = self._known_place(key)
        return found

    def _known_place(self, key: bytes) -> tuple[int, int] | None:
        for number, row in self._index.places(key):
            part = self._parts[number]
            if part is not None and part.key(row) == key:
                return number, row
        return None

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.glob("part-*.arrow")}

    def _give_up(self, number: int, error: DamagedError) -> None:
        part = self._parts[number]
        assert part is not None
        _tell_damaged(part.path, error)
        self._parts[number] = None

    def set_aside_damaged(self) -> list[str]:
        """Read all there is; rename what is damaged, so that it is made anew. Returns the names.

        What writers that were killed left under temporary names goes, too.
        """
        for partial in self.folder.glob(".*.partial"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)
        damaged = [name for name in sorted(self._names()) if not _sound(self.folder / name)]
        for name in damaged:
            (self.folder / name).rename(self.folder / f"{name}.damaged")
        self._forget()
        return damaged

    def __getstate__(self) -> dict[str, Any]:
        """Leave the files and the index behind."""
        return {"folder": self.folder, "_producer": self._producer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _sound(path: Path) -> bool:
    try:
        part = Part(path)
        for row in range(len(part)):
            part.read(row)
    except DamagedError as error:
        _tell_damaged(path, error)
        return False
    return True


def _tell_damaged(path: Path, error: DamagedError) -> None:
    log.warning("%s: damaged (%s); its features are made anew", path, " ".join(str(error).split()))


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove it") from None
