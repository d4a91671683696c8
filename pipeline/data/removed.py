"""Samples that were removed from a run's data after it had begun, such as on request.

`etl/refilter.py --keep-positions` writes a folder without them that says which they were. The order
of samples is still that of all rows (`pipeline.data.shuffle`); a step simply lacks the removed
ones. So every other sample keeps its step, and the steps of a checkpoint that had none of the
removed ones are what they were: training resumes there as if they had never been in the data.

Shapes: n samples, r rows of the data as it first was.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etl.storage.manifest import read_manifest
from etl.storage.positions import Positions, read_positions

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OlderData:
    """The data of a run before samples were removed.

    Args:
        fingerprint: as `ShardSet.fingerprint`.
        removed_r: rows of the first version that were removed since; ascending.
    """

    fingerprint: str
    removed_r: Rows


@dataclass(frozen=True, kw_only=True)
class RemovedRows:
    """What was removed from the data folders of a run.

    Args:
        folders: of each, in order.
        shards: of each, the sha256 of the shards it has now.
    """

    folders: tuple[Positions, ...] = ()
    shards: tuple[tuple[str, ...], ...] = ()

    @functools.cached_property
    def _removed_r(self) -> Rows:
        return self._numbered(each.removed_r for each in self.folders)

    def _numbered(self, of_folders: Iterable[Rows]) -> Rows:
        firsts = itertools.accumulate((each.rows for each in self.folders), initial=0)
        numbered = [first + rows for first, rows in zip(firsts, of_folders, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *numbered])

    def contains(self, rows_n: Rows) -> NDArray[np.bool_]:
        """Return which rows of the first version were removed."""
        removed_r = self._removed_r
        if not len(removed_r):
            return np.zeros(len(rows_n), np.bool_)
        next_n = np.searchsorted(removed_r, rows_n).clip(max=len(removed_r) - 1)
        return removed_r[next_n] == rows_n

    def present_rows(self, rows_n: Rows) -> Rows:
        """Return the rows in the data as it is of rows of the first version that are there."""
        return rows_n - np.searchsorted(self._removed_r, rows_n)

    def first_rows(self, rows_n: Rows) -> Rows:
        """Return the rows of the first version of rows of the data as it is."""
        if not len(self._removed_r):
            return rows_n
        total = sum(each.rows for each in self.folders)
        return np.delete(np.arange(total, dtype=np.int64), self._removed_r)[rows_n]

    def older_data(self) -> Iterator[OlderData]:
        """Yield every state that the data had before, where each folder had any older version."""
        states = []
        for now, shards in zip(self.folders, self.shards, strict=True):
            older = [(each.shards, each.removed_r) for each in reversed(now.versions)]
            states.append([(shards, now.removed_r), *older])
        for state in itertools.islice(itertools.product(*states), 1, None):
            digest = hashlib.sha256("".join(s for shards, _ in state for s in shards).encode())
            since = self._numbered(
                np.setdiff1d(now.removed_r, then)
                for now, (_, then) in zip(self.folders, state, strict=True)
            )
            yield OlderData(fingerprint=digest.hexdigest(), removed_r=since)


def read_removed(folders: Iterable[Path]) -> RemovedRows:
    """Return what was removed from data folders, as their manifests say.

    Raises:
        UserError: a folder without a manifest.
    """
    manifests = [read_manifest(folder) for folder in folders]
    return RemovedRows(
        folders=tuple(map(read_positions, manifests)),
        shards=tuple(tuple(shard.sha256 for shard in each.shards) for each in manifests),
    )
