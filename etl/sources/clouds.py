"""Lists of point clouds and captions: Cap3D's, and triplets as ULIP has them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair, take, texts
from etl.sources.files import json_rows

_CLOUD = ("points", "point_cloud", "pc", "pcl", "file", "uid")
_SUFFIXES = (".npy", ".ply", ".off", ".obj")


def cap3d_rows(file: Path) -> Iterator[list[str]]:
    """Rows of a comma-separated table without a header.

    Raises:
        UserError: it is no such table.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.reader(stream)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a comma-separated table in UTF-8 ({error})") from None


def cap3d(row: list[str]) -> Iterator[Record]:
    """Cap3D: `uid,caption` without a header; its clouds are `UID.ply`."""
    if len(row) != 2:
        raise BadRecordError(f"want uid,caption, got {len(row)} columns")
    yield pair("points", _file(row[0]), row[1].strip())


def triplet(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """ULIP-like: a cloud, one caption or several, and maybe the picture that was taken of it.

    `{points | point_cloud | pc | pcl | file | uid, caption | captions | text, …}`; further strings,
    such as the picture's name, go into lineage.
    """
    name = next((record[key] for key in _CLOUD if record.get(key)), None) if record else None
    if not isinstance(name, str):
        raise BadRecordError(f"want the cloud's file in one of the fields {', '.join(_CLOUD)}")
    key = next((key for key in ("captions", "caption", "text") if key in record), "caption")
    told = take(record, key, (str, list))
    for caption in [told] if isinstance(told, str) else told:
        yield pair("points", _file(name), str(caption).strip(), **texts(record, *_CLOUD, key))


def _file(name: str) -> str:
    return name if name.endswith(_SUFFIXES) or "://" in name else f"{name}.ply"


CAP3D = Format(suffixes=(".csv",), rows=cap3d_rows, parse=cap3d)
TRIPLETS = Format(suffixes=(".json", ".jsonl"), rows=json_rows, parse=triplet)


def guess(seen: Any) -> str:  # noqa: ANN401
    """The format of which a file is that begins so."""
    return "cap3d" if isinstance(seen, str) else "triplets"
