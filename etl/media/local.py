"""Local media: reads files from folders and archives by the names that records give them.

Nothing is unpacked, and only listed files can be read, so no name escapes the folder; links in it
are followed.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import hashlib
import io
import json
import logging
import lzma
import os
import posixpath
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import pyarrow as pa

from etl.cli import UserError
from etl.download.base import Fetched
from etl.media.embedded import TableFile

_log = logging.getLogger("etl")

_MAX_LINKS = 8  # that lead to one another
_UTF8_NAME = 0x800
"""The flag of a zip archive's member whose name is UTF-8 (APPNOTE, section 4.4.4)."""

_STANDARD_LETTERS = str.maketrans("-_", "+/")

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
    """Reads media from folders, zip and uncompressed tar archives, JSON of base64, and parquet.

    JSON and parquet are MIMIC-IT's: names and base64, or names and bytes.

    The name `a/b/c.jpg` matches the file `a/b/c.jpg`, or else the only file whose path ends in
    `a/b/c.jpg`, or else the only one whose path ends in `b/c.jpg`, or else in `c.jpg`. Backslashes
    count as slashes, and Unicode's normal forms as the same.

    Args:
        paths: the folders and archives; the first one that has a path takes precedence.
        max_bytes: the maximum size of a file.

    Raises:
        UserError: a path is missing or none of these.
    """

    def __init__(self, paths: Sequence[Path], *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}
        self._by_name: dict[str, _Entry] = {}
        by_end: list[tuple[str, _Entry]] = []
        for path in paths:
            for name, entry in _list(path):
                self._entries.setdefault(name, entry)
                self._by_name.setdefault(_normal(name), entry)
                by_end.append((_reversed(_normal(name)), entry))
        by_end.sort(key=lambda pair: pair[0])
        self._ends = [end for end, _ in by_end]
        self._by_end = [entry for _, entry in by_end]

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and, in zip archives, checksums."""
        digest = hashlib.sha256()
        for name, entry in sorted(self._entries.items()):
            line = f"{name}\0{entry.size}\0{entry.mark}\n"
            digest.update(line.encode(errors="surrogateescape"))
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
        except Exception as error:  # whatever an archive raises, it concerns this file only
            return Fetched(reason="unreadable_file", detail=f"{name}: {error}")
        if len(data) > self._max_bytes:  # an archive may state wrong sizes
            return Fetched(reason="body_too_large", detail=name)
        return Fetched(data=data)

    def _find(self, name: str) -> _Entry | str:
        """The file of a name, which loses leading folders only while one file alone fits."""
        wanted = _normal(name)
        if entry := self._entries.get(name) or self._by_name.get(wanted):
            return entry
        parts = wanted.split("/")
        for first in range(len(parts)):
            found = self._ending_in(parts[first:])
            if found:
                return found[0] if all(one == found[0] for one in found) else "ambiguous_name"
        return "not_in_media"

    def _ending_in(self, parts: Sequence[str]) -> Sequence[_Entry]:
        """The files whose paths end in these folders and names; links to one file are equal."""
        end = _reversed("/".join(parts))
        first = bisect.bisect_left(self._ends, end)
        after = bisect.bisect_left(self._ends, end[:-1] + chr(ord("/") + 1), lo=first)
        return self._by_end[first:after] if parts[-1] else ()


def _normal(name: str) -> str:
    if name.lower().startswith("file://"):
        name = unquote(name[len("file://") :])
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return name.strip("/").removeprefix("./")


def _reversed(path: str) -> str:
    """A path from its end to its beginning, so that paths with the same end sort together."""
    return "".join(f"{part}/" for part in reversed(path.split("/")))


def _list(path: Path) -> list[tuple[str, _Entry]]:
    if not path.exists():
        raise UserError(f"--media {path}: no such file or folder")
    try:
        if path.is_dir():
            tables = [entry for file in sorted(path.glob("*.parquet")) for entry in _table(file)]
            return [*_folder(path), *tables]
        if path.suffix == ".parquet":
            return list(_table(path))
        if path.suffix == ".json":
            return list(_base64(path))
        return list(_zip(path) if zipfile.is_zipfile(path) else _tar(path))
    except (*_DAMAGE, ValueError) as error:
        raise UserError(
            f"--media {path}: want a folder, a zip, an uncompressed tar, JSON of base64 or parquet "
            f"({error})"
        ) from None


def _folder(root: Path) -> Iterator[tuple[str, _Entry]]:
    for path, real in _files(root, frozenset()):
        name, size = path.relative_to(root).as_posix(), real.stat().st_size
        yield name, _Entry(size=size, mark="", open=_Path(real))


def _files(folder: Path, above: frozenset[str]) -> Iterator[tuple[Path, Path]]:
    """The files below a folder, by path and without links; no link is followed back up."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except PermissionError as error:
        _log.warning("--media: %s; its files are left out", error)
        return
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir():
            yield from _files(path, above | {real})
        elif entry.is_file():
            yield path, path.resolve() if entry.is_symlink() else Path(real, entry.name)


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
            yield _zip_name(info), _Entry(size=info.file_size, mark=f"{info.CRC:08x}", open=opened)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name; some programs write UTF-8 without the flag that says so."""
    if not info.flag_bits & _UTF8_NAME:
        try:
            return info.filename.encode("cp437").decode()
        except UnicodeError:
            pass
    return info.filename


@dataclass(frozen=True)
class _Member:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __call__(self) -> IO[bytes]:
        return self.archive.open(self.info)


def _tar(path: Path) -> Iterator[tuple[str, _Entry]]:
    archive = tarfile.open(path, "r:")  # noqa: SIM115 - stays open as long as the job runs
    members: dict[str, tarfile.TarInfo] = {}
    for info in archive.getmembers():
        members.setdefault(posixpath.normpath(info.name), info)
    links = {name: _target(name, info) for name, info in members.items() if _is_link(info)}
    for name, info in members.items():
        if info.isfile():
            yield name, _packed(archive, info)
    for name, target in links.items():
        end = target
        for _ in range(_MAX_LINKS):
            end = links.get(end, end)
        found = members.get(end)
        if found is not None and found.isfile():
            yield name, _packed(archive, found)
        for below, info in members.items() if found is None or found.isdir() else ():
            if info.isfile() and below.startswith(f"{end}/"):
                yield name + below.removeprefix(end), _packed(archive, info)


def _is_link(info: tarfile.TarInfo) -> bool:
    return info.issym() or info.islnk()


def _target(name: str, info: tarfile.TarInfo) -> str:
    """What a link leads to: from its own folder if it is symbolic, else from the archive's root."""
    folder = posixpath.dirname(name) if info.issym() else ""
    return posixpath.normpath(posixpath.join(folder, info.linkname))


def _packed(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry:
    return _Entry(size=info.size, mark=str(info.mtime), open=_Packed(archive, info))


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
        size = len("".join(coded.text.split()).rstrip("=")) * 3 // 4
        yield name, _Entry(size=size, mark=mark, open=coded)


@dataclass(frozen=True)
class _Coded:
    text: str

    def __call__(self) -> IO[bytes]:
        try:
            return io.BytesIO(decode_base64(self.text))
        except binascii.Error as error:
            raise OSError(f"not base64 ({error})") from None


_KEYS = ("id", "image_id", "key", "name", "file_name", "path", "index")
"""Columns of a parquet file that hold the media's names, if its index does not."""


def _table(path: Path) -> Iterator[tuple[str, _Entry]]:
    """The media in a parquet file: a column of names, and one of base64, bytes or `{bytes, path}`.

    Otter's has pandas' index and `base64` (Luodian/Otter, docs/mimicit_format.md), MIMIC-IT's on
    Hugging Face `id` and `image`.
    """
    table = TableFile(path)
    index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ())
    names = [name for name in (*index, *_KEYS) if name in table.schema.names]
    kinds = {field.name: field.type for field in table.schema}
    values = [name for name, kind in kinds.items() if name == "base64" or _holds_media(kind)]
    if not names or len(values) != 1:
        columns = ", ".join(kinds)
        raise ValueError(f"want a column of names and one of base64 or bytes, got {columns}")
    mark = f"{path.stat().st_size}"
    for first, batch in table.batches([names[0]]):
        for number, name in enumerate(batch.column(0).to_pylist(), first):
            if isinstance(name, str):
                yield name, _Entry(size=0, mark=mark, open=_Cell(table, number, values[0]))


def _holds_media(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in [field.name for field in kind]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class _Cell:
    table: TableFile
    row: int
    column: str

    def __call__(self) -> IO[bytes]:
        value = self.table.cell(self.row, self.column)
        found = (value["bytes"] if pa.types.is_struct(value.type) else value).as_py()
        if found is None:
            raise OSError("the cell is empty")
        return io.BytesIO(found if isinstance(found, bytes) else decode_base64(found))


def decode_base64(text: str) -> bytes:
    """The bytes of base64 as people write it: with line breaks, URL-safe letters or `data:` before.

    Raises:
        binascii.Error: it is none.
    """
    while text.startswith("data:"):
        text = text.partition(",")[2]
    if "%" in text:
        text = unquote(text)
    text = "".join(text.split()).translate(_STANDARD_LETTERS).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # of letters that are not ASCII
        raise binascii.Error(str(error)) from None
