"""Atomic files: they appear complete or not at all, whenever their writer is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` complete and flushed to disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def link_file(source: Path, target: Path) -> bool:
    """Give a complete file a second name (a hard link), atomically and without copying it.

    Neither name may be written to afterwards. Returns False if the file system has no hard links.
    """
    partial = _partial(target)
    try:
        partial.hardlink_to(source)
        partial.replace(target)
    except OSError:
        return False
    finally:
        partial.unlink(missing_ok=True)  # still there if the target was the same file already
    _sync_folder(target.parent)
    return True


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left behind; call it only while nobody writes to `folder`."""
    for partial in folder.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write a JSON file atomically."""
    with atomic_file(path) as stream:
        stream.write(json.dumps(value, indent=2).encode() + b"\n")


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
