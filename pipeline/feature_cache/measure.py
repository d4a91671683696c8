"""Is it faster to read features than to make them? Measured, here and with these media."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.generation_targets import ways
from pipeline.feature_cache.cache_key import Producer
from pipeline.feature_cache.cached import Kept
from pipeline.feature_cache.feature_file import Row, write_part
from pipeline.feature_cache.store import FeatureStore

_MEDIA = 8
_LOOKED_AT = 256
"""Rows that are looked through for media of a kind."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for one medium, or one text, the mean of some.

    Args:
        media: how many were measured.
        decode: of one process, to the part's input on its device; of a text, to its ids.
        encode: of the frozen part, of all media at once.
        read: from its bytes to its features on the device, out of a file that the memory does not
            hold.
        bytes: that the features of one take.
    """

    media: int
    decode: float
    encode: float
    read: float
    bytes: int

    @property
    def faster(self) -> bool:
        """Whether reading is."""
        return self.read < self.decode + self.encode


@torch.no_grad()
def measure(
    shards: ShardSet,
    kept: Kept,
    outputs: Sequence[OutputBranchSpec],
    store: FeatureStore,
    device: str,
) -> Timing | None:
    """Time both ways for some media of a kind; None where the data hold none that can be decoded.

    The frozen part is on the device only meanwhile: it is the whole one, not yet a rank's part.

    Args:
        shards: the data.
        kept: the frozen part, and what it is given.
        outputs: the ways out that the stage uses.
        store: beside which features are written for a moment: its file system is what counts.
        device: where the part will run.
    """
    places, decode, values = _decoded(shards, kept, outputs, device)
    if not places:
        return None
    was = next(kept.module.parameters()).device
    kept.whole.to(device).eval()
    kept.make(values[:1])  # the first call makes more than features
    _wait(device)
    started = time.perf_counter()
    features_m = kept.make(values)
    _wait(device)
    encode = (time.perf_counter() - started) / len(places)
    kept.whole.to(was)
    return Timing(
        media=len(places),
        decode=decode,
        encode=encode,
        read=_read_seconds(kept, places, features_m, store, device),
        bytes=features_m[0].nbytes,
    )


Place = tuple[Sample, int]
"""A sample, and the number of a medium in it."""


def _decoded(
    shards: ShardSet, kept: Kept, outputs: Sequence[OutputBranchSpec], device: str
) -> tuple[list[Place], float, Tensor]:
    """Return some media, the seconds of decoding one, and the part's input of all."""
    found: dict[bytes, tuple[Place, Tensor]] = {}
    seconds = 0.0
    for row in np.linspace(0, len(shards) - 1, min(len(shards), _LOOKED_AT)).astype(int).tolist():
        sample = shards[row]
        kinds = [medium.kind for medium in sample.media]
        for number, way in enumerate(ways(sample.turns, kinds, outputs)):
            if way != kept.kind or len(found) == _MEDIA:
                continue
            key = kept.key(sample, number)
            if key in found:
                continue
            started = time.perf_counter()
            try:
                values = kept.values(sample, number).to(device)
            except (OSError, ValueError):
                continue  # training tells of it when it comes to it
            seconds += time.perf_counter() - started
            found[key] = (sample, number), values
        if len(found) == _MEDIA:
            break
    if not found:
        return [], 0.0, torch.zeros(0)
    places = [place for place, _ in found.values()]
    return places, seconds / len(places), torch.stack([values for _, values in found.values()])


def _read_seconds(
    kept: Kept,
    places: Sequence[Place],
    features_m: Tensor,
    store: FeatureStore,
    device: str,
) -> float:
    folder = Path(tempfile.mkdtemp(prefix=".measure-", suffix=".partial", dir=store.folder))
    try:
        trial = FeatureStore(folder, Producer(role="trial", spec={}, weights="", dtype=""))
        trial.create()
        keys = [kept.key(*place) for place in places]
        rows = (Row(key=k, features=f) for k, f in zip(keys, features_m, strict=True))
        path = write_part(trial.folder, rows)
        assert path is not None
        _drop_from_memory(path)
        len(trial)  # opens the file: that is done once
        started = time.perf_counter()
        for place in places:
            found = trial.get(kept.key(*place))
            assert found is not None
            found.to(device)
        _wait(device)
        return (time.perf_counter() - started) / len(places)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drop_from_memory(path: Path) -> None:
    """Make the next reader of a file read it from the disk: a large store fits into no memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _wait(device: str) -> None:
    """Wait until the device has done what it was told."""
    if not device.startswith("cpu"):
        torch.accelerator.synchronize()
