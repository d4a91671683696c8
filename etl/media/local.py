"""Local media: reads files from folders and archives by the names that records give them.

Nothing is unpacked, and only listed files can be read, so no name escapes the folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from etl.cli import UserError
from etl.download.base import Fetched

_DAMAGE = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError, RuntimeError, NotImplementedError),
)
"""What is raised for a damaged, encrypted or otherwise unreadable archive."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file: its size in bytes, a mark that changes with its content, and how to open it."""

    size: int
    mark: str
    open: Callable[[], IO[bytes]]


class LocalMedia:
    """Reads media from folders, zip and uncompressed tar archives, and JSON of base64 (MIMIC-IT).

    The name `a/b/c.jpg` matches the file `a/b/c.jpg`, or else `b/c.jpg`, or else `c.jpg`, or else
    the only file whose path ends in one of these.

    Args:
        paths: the folders and archives; the first one that has a path takes precedence.
        max_bytes: the maximum size of a file.

    Raises:
        UserError: a path is missing or none of these.
    """

    def __init__(self, paths: Sequence[Path], *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}
        for path in paths:
            for name, entry in _list(path):
                self._entries.setdefault(name, entry)
        self._by_end: dict[str, str | None] = {}
        for name in self._entries:
            base = name.rpartition("/")[2]
            self._by_end[base] = None if base in self._by_end else name

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and, in zip archives, checksums."""
        digest = hashlib.sha256()
        for name, entry in sorted(self._entries.items()):
            digest.update(f"{name}\0{entry.size}\0{entry.mark}\n".encode())
        return digest.hexdigest()

    def read(self, name: str) -> Fetched:
        """The bytes of the file that a record names, or the reason for the failure."""
        found = self._find(name)
        if isinstance(found, str):
            return Fetched(reason=found, detail=name)
        if found.size > self._max_bytes:
            return Fetched(reason="body_too_large", detail=f"{name}: {found.size} bytes")
        try:
            with found.open() as stream:
                data = stream.read(self._max_bytes + 1)
        except _DAMAGE as error:
            return Fetched(reason="unreadable_file", detail=f"{name}: {error}")
        if len(data) > self._max_bytes:  # an archive may state wrong sizes
            return Fetched(reason="body_too_large", detail=name)
        return Fetched(data=data)

    def _find(self, name: str) -> _Entry | str:
        parts = name.strip("/").removeprefix("./").split("/")
        for first in range(len(parts)):
            entry = self._entries.get("/".join(parts[first:]))
            if entry:
                return entry
        if parts[-1] not in self._by_end:
            return "not_in_media"
        unique = self._by_end[parts[-1]]
        if unique:
            return self._entries[unique]
        suffix = "/" + "/".join(parts)
        matches = [name for name in self._entries if name.endswith(suffix)]
        return self._entries[matches[0]] if len(matches) == 1 else "ambiguous_name"


def _list(path: Path) -> list[tuple[str, _Entry]]:
    if not path.exists():
        raise UserError(f"--media {path}: no such file or folder")
    try:
        if path.is_dir():
            return list(_folder(path))
        if path.suffix == ".json":
            return list(_base64(path))
        return list(_zip(path) if zipfile.is_zipfile(path) else _tar(path))
    except (*_DAMAGE, ValueError) as error:
        raise UserError(
            f"--media {path}: want a folder, a zip, an uncompressed tar or JSON of base64 ({error})"
        ) from None


def _folder(root: Path) -> Iterator[tuple[str, _Entry]]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file():
                opened = _Path(path)
                size = path.stat().st_size
                yield path.relative_to(root).as_posix(), _Entry(size=size, mark="", open=opened)


@dataclass(frozen=True)
class _Path:
    path: Path

    def __call__(self) -> IO[bytes]:
        return self.path.open("rb")


def _zip(path: Path) -> Iterator[tuple[str, _Entry]]:
    archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        if not info.is_dir():
            opened = _Member(archive, info)
            yield info.filename, _Entry(size=info.file_size, mark=f"{info.CRC:08x}", open=opened)


@dataclass(frozen=True)
class _Member:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __call__(self) -> IO[bytes]:
        return self.archive.open(self.info)


def _tar(path: Path) -> Iterator[tuple[str, _Entry]]:
    archive = tarfile.open(path, "r:")  # noqa: SIM115 - stays open as long as the job runs
    for info in archive.getmembers():
        if info.isfile():
            name = info.name.removeprefix("./")
            yield name, _Entry(size=info.size, mark=str(info.mtime), open=_Packed(archive, info))


@dataclass(frozen=True)
class _Packed:
    archive: tarfile.TarFile
    info: tarfile.TarInfo

    def __call__(self) -> IO[bytes]:
        stream = self.archive.extractfile(self.info)
        if stream is None:
            raise OSError("not a file")
        return stream


def _base64(path: Path) -> Iterator[tuple[str, _Entry]]:
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise OSError("its JSON is not an object")
    for name, value in values.items():
        coded = _Coded(str(value))
        mark = hashlib.sha256(coded.text.encode()).hexdigest()
        size = len(coded.text.rstrip("=")) * 3 // 4
        yield name, _Entry(size=size, mark=mark, open=coded)


@dataclass(frozen=True)
class _Coded:
    text: str

    def __call__(self) -> IO[bytes]:
        try:
            return io.BytesIO(base64.b64decode(self.text, validate=True))
        except binascii.Error as error:
            raise OSError(f"not base64 ({error})") from None
