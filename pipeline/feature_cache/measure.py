"""Measures on this machine and data whether reading features is faster than computing them."""

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
from pipeline.data.generation_targets import branch_kinds
from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.cached_encoder import CachedEncoder
from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file
from pipeline.feature_cache.store import FeatureStore

_MEDIA = 8
_MAX_SAMPLES = 256
"""Samples that are searched for media of a kind."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Mean seconds per medium or caption.

    Args:
        media: the number of measured media.
        decode: in one process, to the encoder's input on its device; of a caption, to its ids.
        encode: in one batch of all media.
        read: from the medium's bytes to its features on the device, from a file that is not in the
            page cache.
        bytes: of the features of one.
    """

    media: int
    decode: float
    encode: float
    read: float
    bytes: int

    @property
    def reading_is_faster(self) -> bool:
        """Whether reading takes less time than decoding and encoding."""
        return self.read < self.decode + self.encode


@torch.no_grad()
def measure(
    shards: ShardSet,
    encoder: CachedEncoder,
    outputs: Sequence[OutputBranchSpec],
    store: FeatureStore,
    device: str,
) -> Timing | None:
    """Time both for some media of a kind; None where the data hold none that can be decoded.

    The encoder is on the device only for the measurement: it is not partitioned yet.

    Args:
        shards: the data.
        encoder: whose features may be cached.
        outputs: the output branches that the stage uses.
        store: features are written next to it for the measurement, on the same file system.
        device: on which the encoder will run.
    """
    media, decode, values = _decode(shards, encoder, outputs, device)
    if not media:
        return None
    device_before = next(encoder.module.parameters()).device
    encoder.parent.to(device).eval()
    encoder.encode(values[:1])  # warm-up
    _synchronize(device)
    started = time.perf_counter()
    features_m = encoder.encode(values)
    _synchronize(device)
    encode = (time.perf_counter() - started) / len(media)
    encoder.parent.to(device_before)
    return Timing(
        media=len(media),
        decode=decode,
        encode=encode,
        read=_read_seconds(encoder, media, features_m, store, device),
        bytes=features_m[0].nbytes,
    )


MediumRef = tuple[Sample, int]
"""A sample, and the number of a medium in it."""


def _decode(
    shards: ShardSet, encoder: CachedEncoder, outputs: Sequence[OutputBranchSpec], device: str
) -> tuple[list[MediumRef], float, Tensor]:
    """Return some media, the seconds to decode one, and the encoder's input for all."""
    found: dict[bytes, tuple[MediumRef, Tensor]] = {}
    seconds = 0.0
    for row in np.linspace(0, len(shards) - 1, min(len(shards), _MAX_SAMPLES)).astype(int).tolist():
        sample = shards[row]
        kinds = [medium.kind for medium in sample.media]
        for number, kind in enumerate(branch_kinds(sample.turns, kinds, outputs)):
            if kind != encoder.kind or len(found) == _MEDIA:
                continue
            key = encoder.key(sample, number)
            if key in found:
                continue
            started = time.perf_counter()
            try:
                values = encoder.input_values(sample, number).to(device)
            except (OSError, ValueError):
                continue  # training reports it
            seconds += time.perf_counter() - started
            found[key] = (sample, number), values
        if len(found) == _MEDIA:
            break
    if not found:
        return [], 0.0, torch.zeros(0)
    media = [ref for ref, _ in found.values()]
    return media, seconds / len(media), torch.stack([values for _, values in found.values()])


def _read_seconds(
    encoder: CachedEncoder,
    media: Sequence[MediumRef],
    features_m: Tensor,
    store: FeatureStore,
    device: str,
) -> float:
    folder = Path(tempfile.mkdtemp(prefix=".measure-", suffix=".partial", dir=store.folder))
    try:
        trial = FeatureStore(folder, EncoderId(role="trial", spec={}, weights="", dtype=""))
        trial.create()
        keys = [encoder.key(*ref) for ref in media]
        rows = (FeatureRow(key=k, features=f) for k, f in zip(keys, features_m, strict=True))
        path = write_feature_file(trial.folder, rows)
        assert path is not None
        _drop_from_page_cache(path)
        len(trial)  # opens the file, which is done once
        started = time.perf_counter()
        for ref in media:
            found = trial.get(encoder.key(*ref))
            assert found is not None
            found.to(device)
        _synchronize(device)
        return (time.perf_counter() - started) / len(media)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drop_from_page_cache(path: Path) -> None:
    """Make the next reader read the file from disk: a large store does not fit into memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if not device.startswith("cpu"):
        torch.accelerator.synchronize()
