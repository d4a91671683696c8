"""Whether a file is still the one that was checked, told without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from etl.cli import UserError
from etl.storage.atomic import file_sha256


class Stamp(NamedTuple):
    """A file's bytes, the moment of its last change in nanoseconds, and its number on its disk."""

    size: int
    changed: int
    inode: int


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp now.

    Raises:
        FileNotFoundError: it is not there.
    """
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def still(path: Path, then: Stamp, *, sha256: str, mapped: bool) -> Stamp | None:
    """Return the stamp of a file whose bytes are as they were.

    Args:
        path: the file.
        then: its stamp when it was checked.
        sha256: of its bytes.
        mapped: whether it is mapped into memory already: then it can be read, whatever became of
            its name.

    Returns:
        Its stamp now: another one if it was touched, or put back. None if it is gone, but mapped.

    Raises:
        UserError: it has vanished or changed, or the file system does not give it.
    """
    try:
        now = stamp_of(path)
        same = now == then or (now.size == then.size and file_sha256(path) == sha256)
    except FileNotFoundError:
        if mapped:
            return None
        raise UserError(f"{path}: has vanished; put it back") from None
    except OSError as error:  # a stale handle, a folder that is none any more
        raise UserError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    if not same:
        raise UserError(
            f"{path}: has changed since it was checked; put back the one with sha256 {sha256[:12]}…"
        )
    return now
