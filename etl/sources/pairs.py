"""Pairs of a medium and its text: which columns of a row hold them, and what they become."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.cli import UserError
from etl.media.embedded import Location
from etl.sources.base import BadRecordError, MediaRef, Record, exported_lineage, string_fields
from etl.storage.schema import PLACEHOLDERS, Turn, escape

_SUFFIXES: Mapping[str, str] = {
    "image": "jpg jpeg png webp gif bmp tif tiff avif jp2 jpe ppm pgm",
    "video": "mp4 webm mkv avi mov m4v mpg mpeg ogv flv wmv",
    "audio": "wav flac mp3 ogg opus m4a aac aif aiff",
    "points": "ply npy off obj",
}
KIND_OF_SUFFIX = {suffix: kind for kind, names in _SUFFIXES.items() for suffix in names.split()}
"""File suffix, without its dot → the kind of its medium."""

_NAMES: Mapping[str, str] = {
    "image": "image img picture photo pixel",
    "video": "video clip",
    "audio": "audio sound speech recording",
    "points": "points point_cloud pointcloud pc pcl cloud",
}
_KIND_OF_NAME = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_FILE_COLUMNS = (
    *("file_name", "file_names", "filename", "file", "path", "filepath", "file_path"),
    *("url", "media"),
)
"""Columns of names of files whose suffix says what they are."""

_TAIL = re.compile(r"(?:_?(?:file_names?|filenames?|files?|paths?|bytes|data|urls?)|s)$")

CAPTIONS: tuple[str, ...] = ("txt", "caption", "captions", "text", "texts", "sentence", "sentences")
CAPTIONS += ("transcription", "transcript", "description", "alt_text", "alt", "title")
"""Columns that hold a text, in the order in which they are looked for; in any case."""

_NUMBERED = re.compile(r"(?:caption|text|sentence)_?\d+")
_TEXT_FIELDS = ("raw", "text", "caption", "value", "sentence")
"""Fields of a caption that is a struct."""

FOLDER = "__folder__"
"""The column of the folder to which a row's file names are relative."""

_NO_LINEAGE = ("exif", "error_message", "status", "html", "scores")

Columns = Mapping[str, str]
"""Our name (a kind of medium, `url` or `caption`) → the column or, with dots, the field."""

OURS = (*PLACEHOLDERS, "url", "caption")


def read_columns(pairs: Sequence[str], ours: Sequence[str] = OURS) -> dict[str, str]:
    """The mapping that `--columns url=URL caption=TEXT` gives, from our names.

    Raises:
        UserError: it is not of that form.
    """
    found = {}
    for pair in pairs:
        name, equals, theirs = pair.partition("=")
        if not equals or not theirs or name not in ours:
            close = difflib.get_close_matches(name, ours, n=1)
            hint = f"; did you mean {close[0]}=…?" if close else ""
            raise UserError(f"--columns {pair}: want {'=…, '.join(ours)}=…{hint}")
        found[name] = theirs
    return found


def pairs_of(row: Any, columns: Columns) -> Iterator[Record]:  # noqa: ANN401 - a row of any table
    """The records of a row: one per caption of its medium, or per pair of its lists.

    A list of media with one caption is one record. Columns are those of `--columns`; otherwise the
    medium is an embedded one (`{bytes, path}`, or bytes in a column named after its kind or its
    suffix), or else a file's name or URL; the caption is in the first of `CAPTIONS`.
    """
    if not isinstance(row, dict):
        raise BadRecordError(f"want a row with columns instead of {row!r:.60}")
    media, used = _media(row, columns)
    texts, named = _captions(row, columns)
    lineage = _lineage(row, {*used, *named})
    lineage = {name: text for name, text in lineage.items() if text.strip() not in texts}
    refs = [[ref] for ref in media] if len(texts) == len(media) > 1 else [media]
    if len(media) > 1 < len(texts) != len(media):
        raise BadRecordError(f"{len(media)} media, but {len(texts)} captions")
    for position, caption in enumerate(texts):
        one = refs[position] if len(refs) > 1 else refs[0]
        head = "\n".join(PLACEHOLDERS[ref.kind] for ref in one)
        turns = (Turn(role="user", text=head), Turn(role="assistant", text=escape(caption)))
        yield Record(turns=turns, media=tuple(one), caption=caption, lineage=lineage)


def _media(row: Mapping[str, Any], columns: Columns) -> tuple[list[MediaRef], set[str]]:
    """The media of a row, and the columns that they are in."""
    chosen = {kind: theirs for kind, theirs in columns.items() if kind != "caption"}
    if chosen:
        media = []
        for kind, theirs in chosen.items():
            entries = _entries(_field(row, theirs))
            media += [_ref(entry, None if kind == "url" else kind, row) for entry in entries]
        if not media:
            raise BadRecordError(f"no medium in {', '.join(chosen.values())}")
        return media, set(chosen.values())
    for tier in _tiers(row):
        if len(tier) > 1:
            names = ", ".join(tier)
            kind = next(iter(tier.values()))[0].kind
            raise BadRecordError(f"media in {names}: want --columns {kind}=…, or several of them")
        for name, media in tier.items():
            return media, {name}
    raise BadRecordError(_no_medium(row))


def _tiers(row: Mapping[str, Any]) -> Iterator[dict[str, list[MediaRef]]]:
    """The columns that may hold the media, by how sure that is."""
    embedded: dict[str, list[MediaRef]] = {}
    files: dict[str, list[MediaRef]] = {}
    other: dict[str, list[MediaRef]] = {}
    for name, value in row.items():
        entries = _entries(value)
        if not entries:
            continue
        kind = kind_of_column(name)
        located = isinstance(entries[0], Location)
        if kind or (located and _kind_of_file(entries[0].name)):
            place = embedded if located else files
            place[name] = [_ref(entry, kind, row) for entry in entries]
        elif name.lower() in _FILE_COLUMNS and isinstance(entries[0], str):
            other[name] = [_ref(entry, None, row) for entry in entries]
    yield from (embedded, files)
    yield dict(list(other.items())[:1])


def kind_of_column(name: str) -> str | None:
    """The kind of the media in a column: by its name, or a suffix such as `jpg` or `left.jpg`."""
    base = name.lower()
    last = base.rpartition(".")[2]
    if last in KIND_OF_SUFFIX:
        return KIND_OF_SUFFIX[last]
    for _ in range(2):  # image_file_names, images_bytes
        if base in _KIND_OF_NAME:
            return _KIND_OF_NAME[base]
        base = _TAIL.sub("", base)
    return _KIND_OF_NAME.get(base)


def _kind_of_file(name: str | None) -> str | None:
    path = (name or "").partition("?")[0]
    return KIND_OF_SUFFIX.get(path.rpartition(".")[2].lower())


def _entries(value: Any) -> list[Any]:  # noqa: ANN401
    """The media in a cell: a name, a location, a dict with a path or URL, or a list of these."""
    found = []
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("path") or entry.get("url") if isinstance(entry, dict) else entry
        if isinstance(name, str) and name.strip():
            found.append(name)
    return found


def _ref(name: str, kind: str | None, row: Mapping[str, Any]) -> MediaRef:
    if isinstance(name, Location):
        kind = kind or _kind_of_file(name.name) or "image"
        return MediaRef(kind=kind, url=name)
    folder = row.get(FOLDER)
    if folder and "://" not in name and not name.startswith(("/", "data:")):
        name = f"{folder}/{name}"
    return MediaRef(kind=kind or _kind_of_file(name) or "image", url=name.strip())


def _captions(row: Mapping[str, Any], columns: Columns) -> tuple[list[str], set[str]]:
    """The captions of a row, and the columns that they are in."""
    if "caption" in columns:
        names = [columns["caption"]]
    else:
        lower = {name.lower(): name for name in reversed([*row])}
        names = [lower[name] for name in CAPTIONS if _texts(row.get(lower.get(name, "")))][:1]
        names = names or [name for name in row if _NUMBERED.fullmatch(name.lower())]
    texts = [text for name in names for text in _texts(_field(row, name))]
    if not texts:
        raise BadRecordError(_no_caption(row))
    return texts, set(names)


def _texts(value: Any) -> list[str]:  # noqa: ANN401
    """The texts in a cell: a string, a struct that has one, or a list of these."""
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    if isinstance(value, dict):
        strings = {name: text for name, text in value.items() if isinstance(text, str | list)}
        name = next((name for name in _TEXT_FIELDS if name in strings), None)
        if name is None and len(strings) == 1:
            (name,) = strings
        return _texts(strings[name]) if name else []
    text = value.strip() if isinstance(value, str) and not isinstance(value, Location) else ""
    return [text] if text else []


def _field(row: Any, name: str) -> Any:  # noqa: ANN401
    """A column, or with dots a field of a struct or of each entry of a list.

    Raises:
        BadRecordError: there is none.
    """
    if isinstance(row, list):
        return [_field(entry, name) for entry in row]
    if isinstance(row, dict):
        if name in row:
            return row[name]
        head, dot, rest = name.partition(".")
        if dot and head in row:
            return _field(row[head], rest)
        close = difflib.get_close_matches(name, row, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BadRecordError(f"no column {name!r} among {sorted(_shown(row))}{hint}")
    return None


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if not name.startswith("__")]


def _lineage(row: Mapping[str, Any], used: set[str]) -> dict[str, str]:
    """The other strings of a row, its ids, and what `etl/export.py` wrote as its lineage."""
    lineage = string_fields(row, *used, *_NO_LINEAGE, FOLDER)
    lineage = {
        name.strip("_"): text for name, text in lineage.items() if not isinstance(text, Location)
    }
    for name, value in row.items():
        if name.lower().endswith("id") and isinstance(value, int):
            lineage[name] = str(value)
    names = [entry.name for name in used for entry in _entries(row.get(name)) if _named(entry)]
    lineage |= {"name": " ".join(names)} if names else {}
    exported = exported_lineage(row)
    if exported:
        lineage.pop("lineage", None)
    return {**exported, **lineage}


def _named(entry: Any) -> bool:  # noqa: ANN401
    return isinstance(entry, Location) and bool(entry.name)


_DIALOGUES = ("conversations", "conversation", "messages")


def _no_medium(row: Mapping[str, Any]) -> str:
    """An error message that names the nearest format."""
    names = _shown(row)
    if any(name in names for name in _DIALOGUES):
        return "a dialogue rather than a pair: want etl/instruct.py"
    if {"images", "texts"} <= set(names) or "text_list" in names:
        return "a document rather than a pair: want etl/interleaved.py"
    if set(names) <= {"txt", "json", "caption"}:
        return "a text without a medium of the same name"
    known = [*_KIND_OF_NAME, *_FILE_COLUMNS]
    close = [name for name in names if difflib.get_close_matches(name.lower(), known, n=1)]
    nearest = close[0] if close else "COLUMN"
    return f"no medium in the columns {sorted(names)}; want --columns image={nearest}"


def _no_caption(row: Mapping[str, Any]) -> str:
    names = [name for name in _shown(row) if isinstance(row[name], str | list | dict)]
    texts = [name for name in names if not isinstance(row[name], Location)]
    empty = [name for name in _shown(row) if name.lower() in CAPTIONS]
    if empty:
        return f"no text in {empty[0]!r}"
    close = [name for name in texts if difflib.get_close_matches(name.lower(), CAPTIONS, n=1)]
    nearest = close[0] if close else "COLUMN"
    return f"no text in the columns {sorted(_shown(row))}; want --columns caption={nearest}"
