"""Which rows of an older version of a data folder are removed in this one.

A run's plan is made for the rows of its data. If some of them are removed for good, the run can
resume only if all others keep their positions in the plan. So the manifest of a folder that was
filtered for that has `details.positions`:

    rows       of the oldest version
    removed    rows of the oldest version that are not in this one: ranges [first, end)
    versions   of each older version, the oldest first: `shards` (their sha256), and `removed`, what
               it lacked itself

Shapes: n rows of the oldest version, r of them removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etl.storage.manifest import Manifest

POSITIONS = "positions"
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Version:
    """An older version of a data folder.

    Args:
        shards: the sha256 of its shards, in order.
        removed_r: rows of the oldest version that it lacked; ascending.
    """

    shards: tuple[str, ...]
    removed_r: Rows


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The rows of a data folder as positions in its oldest version.

    Args:
        rows: n, of the oldest version.
        removed_r: those of them that the folder lacks; ascending.
        versions: the older versions, the oldest first; none if nothing was ever removed.
    """

    rows: int
    removed_r: Rows
    versions: tuple[Version, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the entry `positions` of a manifest's details."""
        return {
            "rows": self.rows,
            "removed": _ranges(self.removed_r),
            "versions": [
                {"shards": list(version.shards), "removed": _ranges(version.removed_r)}
                for version in self.versions
            ],
        }


def read_positions(manifest: Manifest) -> Positions:
    """Return the positions of a folder's rows; of a folder that was not filtered, its rows."""
    entry: Mapping[str, Any] | None = manifest.details.get(POSITIONS)
    if entry is None:
        return Positions(rows=manifest.rows, removed_r=np.empty(0, np.int64), versions=())
    return Positions(
        rows=entry["rows"],
        removed_r=_rows(entry["removed"]),
        versions=tuple(
            Version(shards=tuple(one["shards"]), removed_r=_rows(one["removed"]))
            for one in entry["versions"]
        ),
    )


def remove_rows(manifest: Manifest, rows: Iterable[int]) -> Positions:
    """Return the positions of a folder's rows once some of them are removed.

    Args:
        manifest: of the folder.
        rows: their numbers in the folder as it is.
    """
    before = read_positions(manifest)
    present = np.delete(np.arange(before.rows, dtype=np.int64), before.removed_r)
    removed = present[np.fromiter(rows, np.int64)]
    shards = tuple(shard.sha256 for shard in manifest.shards)
    return Positions(
        rows=before.rows,
        removed_r=np.union1d(before.removed_r, removed),
        versions=(*before.versions, Version(shards=shards, removed_r=before.removed_r)),
    )


def _ranges(rows_r: Rows) -> list[list[int]]:
    """Return ascending rows as ranges [first, end)."""
    if not len(rows_r):
        return []
    starts = np.flatnonzero(np.diff(rows_r, prepend=rows_r[0] - 2) != 1)
    ends = np.append(starts[1:], len(rows_r)) - 1
    return [[int(rows_r[a]), int(rows_r[b]) + 1] for a, b in zip(starts, ends, strict=True)]


def _rows(ranges: Iterable[tuple[int, int]]) -> Rows:
    parts = [np.arange(first, end, dtype=np.int64) for first, end in ranges]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
