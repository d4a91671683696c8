"""Fields of a published record: those that name media, and the rest, which goes into lineage.

A field that holds media but is not read would be lost in silence, so `lineage_fields`, which takes
what a reader has left over, refuses records with one.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from etl.filters.records import is_url
from etl.filters.urls import EMBEDDED
from etl.media.embedded import is_embedded
from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field
from etl.sources.pairs import KIND_OF_SUFFIX, read_columns

KINDS = ("image", "video", "audio", "points")

_WORDS = {
    **{"image": "image", "img": "image", "picture": "image", "photo": "image"},
    **{"video": "video", "audio": "audio", "sound": "audio"},
    **{"pcl": "points", "point": "points", "point_cloud": "points", "pointcloud": "points"},
}
_FIELD = re.compile(rf"({'|'.join(_WORDS)})s?(_(?:file|path|name|url)s?)?", re.IGNORECASE)
"""Names of fields that hold media: `image`, `images`, `image_path`, `img_urls`, `pcl` …"""
_NAME = re.compile(rf"[^\n\r\t]{{1,500}}\.(?:{'|'.join(KIND_OF_SUFFIX)})", re.IGNORECASE)
_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+[;,]")
_PROVENANCE = re.compile(
    r"(?:.*_)?(?:url|link|href|license|id|idx|uid|key|source)s?", re.IGNORECASE
)
"""Names of fields that say where a record or its medium is from."""
_BETWEEN = re.compile(r"\s*[,;|\n]\s*")


def is_medium(value: Any) -> bool:  # noqa: ANN401 - whatever JSON or parquet can hold
    """Whether a value looks like a medium: a file's name, a data URL, or bytes in a table."""
    if isinstance(value, dict):  # `{bytes, path}` in JSON; tables have its location instead
        return is_medium(value.get("path")) or is_medium(value.get("url"))
    if not isinstance(value, str):
        return False
    if is_embedded(value) or _DATA.match(value):
        return True
    return bool(_NAME.fullmatch(re.split("[?#]", value)[0] if is_url(value) else value.strip()))


def kind_of(name: str) -> str | None:
    """The kind of medium that a file's name ends in, if any."""
    return KIND_OF_SUFFIX.get(re.split("[?#]", name, maxsplit=1)[0].rpartition(".")[2].lower())


def media_names(value: Any, field: str) -> Sequence[str]:  # noqa: ANN401
    """The names or URLs of media in a field.

    The field may hold a name, several names in one string, a list of names, structs with a `path`
    or `url`, names by their placeholders (`{"<image_00>": …}`, MiniCPM-V), or nothing. Bytes in a
    table are a name, too (`etl.sources.files.table_rows`).

    Raises:
        BadRecordError: it holds something else.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, dict) and value and all(key[:1] == "<" for key in value):
        value = [value[key] for key in sorted(value)]
    names: list[str] = []
    for one in value if isinstance(value, list) else [value]:
        name = one.get("path") or one.get("url") if isinstance(one, dict) else one
        if not isinstance(name, str) or not name:
            raise BadRecordError(f"{field} is {value!r:.60}, want a name or a list of names")
        names += _split(name)
    return names


def _split(text: str) -> list[str]:
    """Several names in one string: a list written as text, or names between commas and the like."""
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, SyntaxError):
                continue
            if found and isinstance(found, list) and all(isinstance(one, str) for one in found):
                return found
    parts = _BETWEEN.split(text.strip())
    alike = not text.startswith("data:") and all(map(is_medium, parts))
    if len(parts) > 1 and alike and len({is_url(part) for part in parts}) == 1:
        return parts
    return [text]


def media_fields(record: Mapping[str, Any], *excluded: str) -> dict[str, tuple[MediaRef, ...]]:
    """The media of a record by the field that names them, at most one field for each kind.

    The field is `image`, `images`, or, in want of these, another name such as `image_path`; so for
    videos, audio and point clouds (`pcl`, `point`). Several fields of one kind name the same media
    if their file names are the same; next to bytes, and for URLs, if they are as many.

    Raises:
        BadRecordError: a field holds no names, or two fields name different media.
    """
    by_kind: dict[str, dict[str, tuple[MediaRef, ...]]] = {kind: {} for kind in KINDS}
    for field, value in record.items():
        found = _FIELD.fullmatch(field)
        if not found or field in excluded:
            continue
        if found[2] and not all(map(_named, value if isinstance(value, list) else [value])):
            continue  # `image_name: "Sunset"` names no file
        kind = _WORDS[found[1].lower()]
        if isinstance(value, list) and any(isinstance(one, list) for one in value):
            raise BadRecordError(f"{field} is {value!r:.60}; a {kind} of frames is not read")
        refs = tuple(MediaRef(kind=kind, url=name) for name in media_names(value, field))
        if refs:
            by_kind[kind][field] = refs
    return {
        name: fields[name]
        for fields in by_kind.values()
        if fields
        for name in [_first_name(fields)]
    }


def _named(value: Any) -> bool:  # noqa: ANN401
    return is_medium(value) or (isinstance(value, str) and is_url(value))


def _first_name(fields: Mapping[str, tuple[MediaRef, ...]]) -> str:
    """The field of some for one kind, if the others name the same media in another way."""
    first, *others = sorted(fields, key=lambda name: "_" in name)
    for other in others:
        pairs = list(zip(fields[first], fields[other], strict=False))
        is_same = len(fields[first]) == len(fields[other])
        if not other.lower().rstrip("s").endswith("url"):  # a URL may end in any name
            is_same = is_same and all(
                one.url.startswith(("data:", EMBEDDED)) or _base(one.url) == _base(two.url)
                for one, two in pairs
            )
        if not is_same:
            raise BadRecordError(
                f"{first} and {other} name different media: want one field for each kind"
            )
    return first


def lineage_fields(
    record: Mapping[str, Any], *read: str, media: Collection[object] = ()
) -> dict[str, str]:
    """What a reader leaves over, for lineage: texts, numbers and flags; `id` is `original_id`.

    Args:
        record: as published.
        read: the fields that were read.
        media: what was read of the record's media; then a field such as `coco_url`, or one with the
            same file name, says where a medium is from, and is none that was overlooked.

    Raises:
        BadRecordError: a field that was not read holds media.
    """
    lineage: dict[str, str] = {}
    files = {_base(ref.url) for ref in media if isinstance(ref, MediaRef)}
    for field, value in record.items():
        if field in read:
            continue
        other_name = media and (_PROVENANCE.fullmatch(field) or _FIELD.fullmatch(field))
        found = () if other_name else filter(is_medium, _flat(value))
        if any(not isinstance(one, str) or _base(one) not in files for one in found):
            raise BadRecordError(
                f"its field {field!r} holds media ({value!r:.60}), which are read from image(s), "
                "video(s), audio(s), pcl and point(s) only: say what it is with --columns "
                f"image={field}, or lineage={field} if it is not the record's medium"
            )
        name = "original_id" if field == "id" else field
        if isinstance(value, bool):
            lineage[name] = str(value).lower()
        elif isinstance(value, str | int | float):
            lineage[name] = str(value)
    return lineage


def _base(url: str) -> str:
    """The last part of a path or URL."""
    return re.split("[?#]", url)[0].rpartition("/")[2]


def _flat(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """A value, or the values in a list of any depth, and those in structs."""
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    elif isinstance(value, dict) and not is_medium(value):
        yield from (part for one in value.values() for part in _flat(one))
    else:
        yield value


_OURS = (
    *(
        *KINDS,
        "messages",
        "instruction",
        "input",
        "output",
        "system",
        "history",
        "chosen",
        "rejected",
    ),
    "lineage",
)


def with_columns(fmt: Format, columns: Sequence[str]) -> Format:
    """A format whose records have other names for some fields, given as `--columns ours=theirs`.

    `lineage=theirs` keeps a field, in lineage, that would otherwise be taken for media.

    Raises:
        UserError: an entry is not of that form.
    """
    if not columns:
        return fmt
    pairs = [pair for column in columns for pair in read_columns([column], _OURS).items()]

    def parse(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON, or a row of parquet
        kept = {theirs: require_field(record, theirs) for _, theirs in pairs}
        renamed = {name: value for name, value in record.items() if name not in kept}
        renamed |= {ours: kept[theirs] for ours, theirs in pairs if ours != "lineage"}
        lineage = {
            theirs: value if isinstance(value, str) else json.dumps(value)
            for ours, theirs in pairs
            if ours == "lineage" and (value := kept[theirs]) is not None
        }
        for found in fmt.parse(renamed):
            yield dataclasses.replace(found, lineage={**found.lineage, **lineage})

    return dataclasses.replace(fmt, parse=parse)
