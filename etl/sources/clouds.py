"""Lists of point clouds and captions: Cap3D's, and ULIP-like triplets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etl.sources.base import BadRecordError, Format, Record, pair, require_field, string_fields
from etl.sources.files import json_rows
from etl.sources.tables import separated_values

_CLOUD = ("points", "point_cloud", "pc", "pcl", "file", "uid")
_SUFFIXES = (".npy", ".ply", ".off", ".obj")


def cap3d(row: list[str]) -> Iterator[Record]:
    """Cap3D: `uid,caption` without a header; its clouds are files `UID.ply`."""
    if len(row) != 2:
        raise BadRecordError(f"want uid,caption, got {len(row)} columns")
    yield pair("points", _file(row[0]), row[1].strip())


def triplet(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """ULIP-like: a cloud, one or several captions, and possibly a rendered image.

    `{points | point_cloud | pc | pcl | file | uid, caption | captions | text, …}`; further strings,
    such as the image's name, go into lineage.
    """
    name = next((record[key] for key in _CLOUD if record.get(key)), None) if record else None
    if not isinstance(name, str):
        raise BadRecordError(f"want the cloud's file in one of the fields {', '.join(_CLOUD)}")
    key = next((key for key in ("captions", "caption", "text") if key in record), "caption")
    captions = require_field(record, key, (str, list))
    lineage = string_fields(record, *_CLOUD, key)
    for caption in [captions] if isinstance(captions, str) else captions:
        yield pair("points", _file(name), str(caption).strip(), **lineage)


def _file(name: str) -> str:
    return name if name.endswith(_SUFFIXES) or "://" in name else f"{name}.ply"


CAP3D = Format(suffixes=(".csv",), rows=separated_values, parse=cap3d)
TRIPLETS = Format(suffixes=(".json", ".jsonl"), rows=json_rows, parse=triplet)
FORMATS: Mapping[str, Format] = {"cap3d": CAP3D, "triplets": TRIPLETS}


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a file with this first content (see `peek`)."""
    return "cap3d" if isinstance(content, str) else "triplets"
