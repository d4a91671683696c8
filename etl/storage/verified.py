"""Stamps of verified shards: bytes that were once compared with the manifest are not read again.

    DATA/.verified/rank-RANK-of-RANKS.json   shard → size, time of modification, sha256

Each rank of a run verifies its share of the shards and writes a file of its own; all are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from etl.storage.atomic import write_json
from etl.storage.fingerprint import FileFingerprint
from etl.storage.manifest import Shard

log = logging.getLogger(__name__)

_FOLDER = ".verified"
_SAVE_EVERY_S = 10.0


class VerifiedShards:
    """The stamps of a data folder.

    Args:
        folder: of shards.
        rank, ranks: of this process, which verifies every `ranks`-th shard.
        fallback: where stamps are kept if the folder is not writable; without it they are not.
    """

    def __init__(self, folder: Path, *, rank: int, ranks: int, fallback: Path | None) -> None:
        place: Path | None = folder / _FOLDER
        if not os.access(folder, os.W_OK):
            name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            place = fallback / _FOLDER / name if fallback is not None else None
        self._path = None if place is None else place / f"rank-{rank}-of-{ranks}.json"
        self._own: dict[str, list[int | str]] = {}
        self._all: set[tuple[int | str, ...]] = set()
        for file in place.glob("*.json") if place is not None else ():
            stamps = _read(file)
            self._all.update((name, *stamp) for name, stamp in stamps.items())
            if file == self._path:
                self._own = stamps
        self._unsaved = 0
        self._saved = time.monotonic()

    def __contains__(self, shard: tuple[Shard, FileFingerprint]) -> bool:
        """Whether a shard was verified, and its file has not been written to since."""
        return (shard[0].path, *_stamp(*shard)) in self._all

    def add(self, shard: Shard, fingerprint: FileFingerprint) -> None:
        """Stamp a shard."""
        self._own[shard.path] = _stamp(shard, fingerprint)
        self._unsaved += 1
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the stamps that are not yet written."""
        if not self._unsaved or self._path is None:
            return
        try:
            write_json(self._path, self._own)
        except OSError as error:
            log.warning("%s: %s; checksums are compared again next time", self._path, error)
        self._unsaved, self._saved = 0, time.monotonic()


def _stamp(shard: Shard, fingerprint: FileFingerprint) -> list[int | str]:
    return [fingerprint.size, fingerprint.modified_ns, shard.sha256]


def _read(file: Path) -> dict[str, list[int | str]]:
    try:
        stamps: dict[str, list[int | str]] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps
