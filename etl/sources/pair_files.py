"""Pairs of media and texts as people store them: folders, archives, tables; each by its looks.

Each row becomes a dict of columns, whatever it was read from (`etl.sources.pairs`). Media stay
where they are (`etl.media.embedded`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from etl.cli import UserError
from etl.media.embedded import Location, file_location, member_location
from etl.sources import captions
from etl.sources.base import Format
from etl.sources.files import (
    BadRow,
    holds_lines,
    input_files,
    parquet_or_json_rows,
    plain_suffix,
    read_json,
    saved_files,
    text_lines,
)
from etl.sources.pairs import FOLDER, KIND_OF_SUFFIX, Columns, pairs_of
from etl.sources.tables import named_values

_log = logging.getLogger("etl")

METADATA = tuple(f"metadata.{kind}" for kind in ("jsonl", "csv", "parquet", "ndjson", "tsv"))
"""Files that describe a folder's media (https://huggingface.co/docs/datasets/image_dataset)."""

_LISTS = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
"""Suffixes of tables; a folder is read by the first that it has."""

_MAX_TEXT = 16 << 20


def table_format(columns: Columns, folder: Path | None = None) -> Format:
    """Tables with a medium and a text in every row: parquet, Arrow, csv, tsv, JSON and its lines.

    As `datasets` writes them (`{bytes, path}`; `push_to_hub`, `to_parquet`, `save_to_disk`), as
    img2dataset's parquet (`jpg`, `txt`), or with the names of files or URLs. Of a folder, files of
    one kind are read, since other lists in it say something about these.
    """
    suffixes: tuple[str, ...] = _LISTS
    if folder:
        found = {plain_suffix(file) for file in folder.rglob("*") if not file.name.startswith("._")}
        suffixes = next(((one,) for one in _LISTS if one in found), _LISTS)
    return Format(suffixes=suffixes, rows=_table, parse=lambda row: pairs_of(row, columns))


def _table(file: Path) -> Iterator[Any]:
    delimited = plain_suffix(file) in (".csv", ".tsv", ".txt")
    rows = named_values(file) if delimited else parquet_or_json_rows(file)
    split = file.parent.name if (file.parent.parent / "dataset_dict.json").is_file() else None
    for row in rows:
        yield {"split": split, **row} if split and isinstance(row, dict) else row


def metadata_format(columns: Columns, folder: Path | None = None) -> Format:
    """A folder with `metadata.jsonl`, `.csv` or `.parquet`: `file_name` and a text.

    Names are relative to the folder of the metadata file; of these there may be several in
    `folder`, the input.
    """

    def rows(file: Path) -> Iterator[Any]:
        prefix = file.parent.relative_to(folder or file.parent).as_posix()
        for row in _table(file):
            nested = prefix != "." and isinstance(row, dict)
            yield {**row, FOLDER: prefix} if nested else row

    return Format(suffixes=METADATA, rows=rows, parse=lambda row: pairs_of(row, columns))


def archive_format(columns: Columns) -> Format:
    """Tar archives of samples by key: `KEY.jpg`, `KEY.txt`, `KEY.json` (webdataset, img2dataset).

    The key is a path up to the first dot of its name, and the members of a sample follow each other
    (https://github.com/webdataset/webdataset, `base_plus_ext` and `group_by_keys`).
    """
    return Format(suffixes=(".tar",), rows=_archive, parse=lambda row: pairs_of(row, columns))


def dialogue_rows(file: Path) -> Iterator[Any]:
    """Rows of dialogues: as `parquet_or_json_rows`, or samples of an archive with `KEY.json`.

    The media of a sample, such as `KEY.jpg` or `KEY.0.jpg` and `KEY.1.jpg`, are its `images`,
    `videos`, `audios` and `points`, in the order of their names, unless its JSON names them.
    """
    if plain_suffix(file) != ".tar":
        yield from parquet_or_json_rows(file)
        return
    for row in _archive(file):
        yield row if isinstance(row, BadRow) else _with_media_lists(row)


def _with_media_lists(row: dict[str, Any]) -> dict[str, Any]:
    lists: dict[str, list[Any]] = {}
    for suffix in sorted(row, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        kind = KIND_OF_SUFFIX.get(suffix.rpartition(".")[2])
        if kind and isinstance(row[suffix], Location):
            lists.setdefault(kind if kind == "points" else f"{kind}s", []).append(row[suffix])
    rest = {name: value for name, value in row.items() if not isinstance(value, Location)}
    rest["key"] = rest.pop("__key__")
    return {**lists, **rest}


def _archive(file: Path) -> Iterator[Any]:
    other: Counter[str] = Counter()
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for info in archive:
                key, suffix = _key(info.name)
                if not key or not (info.isfile() or info.islnk() or info.issym()):
                    other.update([] if info.isdir() else [info.name])
                    continue
                if sample and sample["__key__"] != key:
                    yield _group(sample)
                    sample = {}
                sample.setdefault("__key__", key)
                sample[suffix] = _member(archive, info, suffix)
    except (tarfile.TarError, EOFError, OSError) as error:
        if not sample:
            raise UserError(f"{file}: want an uncompressed tar archive ({error})") from None
        yield _group(sample)
        sample = {}
        yield BadRow(f"{file.name} ends early ({error})")
    if sample:
        yield _group(sample)
    if other:
        names = ", ".join(list(other)[:3])
        _log.warning("%s: %s members are not read (%s …)", file, len(other), names)


def _key(name: str) -> tuple[str, str]:
    """A member's key and its suffix in lower case; empty if it has none, or is a hidden file."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or base.startswith("._") or re.match(r"__[^/]*__($|/)", name):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> Any:  # noqa: ANN401
    """A member's text, or where its bytes are; None if it is a link to nowhere."""
    for _ in range(8):
        if info.isfile():
            break
        target = info.linkname
        if info.issym():
            target = os.path.normpath(PurePosixPath(info.name).parent / target)
        try:
            info = archive.getmember(target)
        except KeyError:
            return None
    if _is_text(suffix):
        stream = archive.extractfile(info) if info.size <= _MAX_TEXT else None
        return stream.read() if stream else None
    return member_location(info.offset_data, info.size, info.name)


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in ("txt", "caption", "json")


def _group(sample: Mapping[str, Any]) -> dict[str, Any] | BadRow:
    """A sample's columns: its members by suffix, and the fields of its JSON."""
    row: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for suffix, value in sample.items():
        if not isinstance(value, bytes):
            row[suffix] = value
        elif suffix.endswith("json"):
            try:
                parsed = json.loads(value.decode("utf-8-sig", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                return BadRow(f"{sample['__key__']}.{suffix} is not JSON ({error})")
            fields |= parsed if isinstance(parsed, dict) else {"captions": parsed}
        else:
            row[suffix] = value.decode("utf-8-sig", "surrogateescape").strip()
    return {**fields, **row}


def folder_format(columns: Columns) -> Format:
    """A folder of media with captions next to them: `x.jpg` and `x.txt`, `.caption` or `.json`.

    The captions' files are found by the media's names without their last suffix.
    """
    return Format(
        suffixes=(), rows=_folder, parse=lambda row: pairs_of(row, columns), reads_folder=True
    )


def _folder(folder: Path) -> Iterator[Any]:
    for path, names in _stems(folder):
        sample: dict[str, Any] = {"__key__": path}
        for name in names:
            suffix = name.rpartition(".")[2].lower()
            if _is_text(suffix):
                sample[suffix] = (folder / name).read_bytes()[:_MAX_TEXT]
            else:
                sample[suffix] = file_location(name)
        yield _group(sample)


def _stems(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The media and captions of a folder, by their paths without suffixes, sorted."""
    other: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        groups: dict[str, list[str]] = {}
        for name in sorted(files):
            path = (Path(parent) / name).relative_to(folder).as_posix()
            stem, dot, suffix = path.rpartition(".")
            wanted = suffix.lower() in KIND_OF_SUFFIX or _is_text(suffix.lower())
            if dot and wanted and not name.startswith("._") and not name.endswith("_stats.json"):
                groups.setdefault(stem, []).append(path)
            else:
                other.append(path)
        yield from groups.items()
    if other:
        names = ", ".join(other[:3])
        _log.warning("%s: %s other files are not read (%s …)", folder, len(other), names)


def folder_fingerprint(folder: Path) -> str:
    """Digest of a folder's media, by their names and sizes, and of its captions' contents."""
    digest = hashlib.sha256()
    for _, names in _stems(folder):
        for name in names:
            path = folder / name
            is_text = _is_text(name.rpartition(".")[2].lower())
            content = path.read_bytes() if is_text else str(path.stat().st_size).encode()
            digest.update(os.fsencode(f"{name}\0{len(content)}\0") + content)
    return digest.hexdigest()


def pair_formats(columns: Columns, path: Path | None = None) -> dict[str, Format]:
    """All formats by name, for the mapping of `--columns` and an input."""
    folder = path if path and path.is_dir() else None
    return {
        "folder": folder_format(columns),
        "metadata": metadata_format(columns, folder),
        "tar": archive_format(columns),
        "table": table_format(columns, folder),
        **captions.FORMATS,
    }


FORMATS: Mapping[str, Format] = {
    name: fmt for name, fmt in pair_formats({}).items() if name not in captions.FORMATS
}


def detect_pairs(path: Path) -> str:
    """The name of the format of an input.

    Raises:
        UserError: it has none that is known; the message names the nearest.
    """
    if path.is_dir() and saved_files(path) is None:
        return _detect_folder(path)
    file = input_files(path, *_LISTS)[0]
    if file.name in METADATA:
        return "metadata"
    match plain_suffix(file):
        case ".tar":
            return "tar"
        case ".json":
            return _detect_json(file)
        case suffix if suffix in _LISTS:
            return "table"
    if tarfile.is_tarfile(file):
        return "tar"
    if pages := _text_urls(file):
        raise UserError(f"{file}: a list of URLs without texts ({pages}): want etl/cc.py")
    raise UserError(
        f"{file}: not understood; want a folder, tar archives, or a table ({', '.join(_LISTS)})"
    )


def _detect_folder(folder: Path) -> str:
    """The format of a folder: by what it has, in this order, since archives have tables, too."""
    found: Counter[str] = Counter()
    names: set[str] = set()
    for _, _, files in os.walk(folder):
        for name in files:
            if name.startswith("._"):
                continue
            names.add(name)
            found[plain_suffix(Path(name))] += 1
    media = sum(count for suffix, count in found.items() if suffix[1:] in KIND_OF_SUFFIX)
    texts = sum(found[suffix] for suffix in (".txt", ".caption"))
    if names & set(METADATA):
        return "metadata"
    if found[".tar"]:
        return "tar"
    if media and (texts or found[".json"] > 1):
        return "folder"
    if found[".parquet"] or any(found[suffix] for suffix in (".csv", ".tsv", ".jsonl")):
        return "table"
    if found[".json"]:
        return _detect_json(input_files(folder, ".json")[0])
    has = ", ".join(
        f"{count} {suffix or 'without suffix'}" for suffix, count in found.most_common(4)
    )
    if media:
        raise UserError(
            f"--input {folder}: media without texts ({has}); nearest is a folder of files with"
            " captions next to them: want x.txt or x.json next to x.jpg, or metadata.jsonl with"
            " file_name and text"
        )
    raise UserError(
        f"--input {folder}: neither media with texts, nor tar archives, nor tables"
        f" ({has or 'no files'}); want a folder such as x.jpg and x.txt"
    )


def _detect_json(file: Path) -> str:
    """The format of a JSON file: one of COCO's kin, or a table of records."""
    if holds_lines(file):
        return "table"
    content = read_json(file)
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and not ("regions" in first or {"image_id", "url"} <= set(first)):
        return "table"
    try:
        return captions.detect_format(content)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _text_urls(file: Path) -> str:
    """The first line of a file of URLs; empty if it is none."""
    line = next(text_lines(file), "")
    return line if line.startswith(("http://", "https://")) and not line.split()[1:] else ""
