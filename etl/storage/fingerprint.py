"""File fingerprints: detect whether a file changed since it was verified, without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from etl.cli import UserError
from etl.storage.atomic import file_sha256


class FileFingerprint(NamedTuple):
    """A file's size in bytes, its modification time in nanoseconds, and its inode."""

    size: int
    modified_ns: int
    inode: int


def file_fingerprint(path: Path) -> FileFingerprint:
    """Return a file's current fingerprint.

    Raises:
        FileNotFoundError: there is no such file.
    """
    status = path.stat()
    return FileFingerprint(status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(
    path: Path, verified: FileFingerprint, *, sha256: str, mapped: bool
) -> FileFingerprint | None:
    """Return the fingerprint of a file whose content has not changed.

    Args:
        path: the file.
        verified: its fingerprint when it was verified.
        sha256: of its content.
        mapped: whether it is memory-mapped: then it can be read even if it was deleted.

    Returns:
        Its current fingerprint, which differs if the file was touched or replaced by a copy. None
        if it was deleted, but is mapped.

    Raises:
        UserError: it is missing, changed, or unreadable.
    """
    try:
        current = file_fingerprint(path)
        same = current == verified or (
            current.size == verified.size and file_sha256(path) == sha256
        )
    except FileNotFoundError:
        if mapped:
            return None
        raise UserError(f"{path}: has vanished; put it back") from None
    except OSError as error:  # a stale handle, or a parent that is no longer a folder
        raise UserError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    if not same:
        raise UserError(
            f"{path}: has changed since it was checked; restore the one with sha256 {sha256[:12]}…"
        )
    return current
