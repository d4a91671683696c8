"""Is it faster to read features than to make them? Measured, here and with these media."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from etl.schema import Medium
from etl.shards import ShardSet
from model.build import prepare
from model.parts import encode_parts
from model.spec import InputSlot
from pipeline.data.readers import read
from pipeline.features.lookup import Lookup
from pipeline.features.parts import Row, write_part
from pipeline.features.producer import Producer
from pipeline.features.store import FeatureStore

_MEDIA = 8
_LOOKED_AT = 256
"""Rows that are looked through for media of a kind."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for one medium, the mean of some.

    Args:
        media: how many were measured.
        decode: of one process, to the encoder's input on its device.
        encode: of the encoder, of all media at once.
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
    shards: ShardSet, slot: InputSlot, encoder: nn.Module, store: FeatureStore, device: str
) -> Timing | None:
    """Time both ways for some media of a slot; None where the data hold none that can be decoded.

    The encoder is on the device only meanwhile: it is the whole one, not yet a rank's part.

    Args:
        shards: the data.
        slot: whose media.
        encoder: the slot's.
        store: beside which features are written for a moment: its file system is what counts.
        device: where the encoder will run.
    """
    media, decode, values = _decoded(shards, slot, device)
    if not media:
        return None
    was = next(encoder.parameters()).device
    encoder.to(device).eval()
    run = partial(encode_parts, encoder, whole=slot.encoder.sees_parts)
    run(values[:1])  # the first call makes more than features
    _wait(device)
    started = time.perf_counter()
    features_mfnd = run(values)
    _wait(device)
    encode = (time.perf_counter() - started) / len(media)
    encoder.to(was)
    return Timing(
        media=len(media),
        decode=decode,
        encode=encode,
        read=_read_seconds(slot, media, features_mfnd, store, device),
        bytes=features_mfnd[0].nbytes,
    )


def _decoded(shards: ShardSet, slot: InputSlot, device: str) -> tuple[list[Medium], float, Tensor]:
    """Return some media, the seconds of decoding one, and the encoder's input of all."""
    found: dict[bytes, tuple[Medium, Tensor]] = {}
    seconds = 0.0
    for row in np.linspace(0, len(shards) - 1, min(len(shards), _LOOKED_AT)).astype(int).tolist():
        for medium in shards[row].media:
            if medium.kind != slot.modality or medium.data in found or len(found) == _MEDIA:
                continue
            started = time.perf_counter()
            try:
                values = prepare(slot.encoder, read(medium, slot)).to(device)
            except (OSError, ValueError):
                continue  # training tells of it when it comes to it
            seconds += time.perf_counter() - started
            found[medium.data] = medium, values
        if len(found) == _MEDIA:
            break
    if not found:
        return [], 0.0, torch.zeros(0)
    media = [medium for medium, _ in found.values()]
    return media, seconds / len(media), torch.stack([values for _, values in found.values()])


def _read_seconds(
    slot: InputSlot,
    media: Sequence[Medium],
    features_mfnd: Tensor,
    store: FeatureStore,
    device: str,
) -> float:
    folder = Path(tempfile.mkdtemp(prefix=".measure-", suffix=".partial", dir=store.folder))
    try:
        trial = FeatureStore(folder, Producer(role="trial", spec={}, weights="", dtype=""))
        trial.create()
        lookup = Lookup(slots={slot.modality: slot}, stores={slot.modality: trial})
        keys = [_key(lookup, medium) for medium in media]
        rows = (Row(key=k, features=f) for k, f in zip(keys, features_mfnd, strict=True))
        path = write_part(trial.folder, rows)
        assert path is not None
        _drop_from_memory(path)
        len(trial)  # opens the file: that is done once
        started = time.perf_counter()
        for medium in media:
            found = lookup.find(medium)
            assert found is not None
            assert found.features is not None
            found.features.to(device)
        _wait(device)
        return (time.perf_counter() - started) / len(media)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key(lookup: Lookup, medium: Medium) -> bytes:
    found = lookup.find(medium)
    assert found is not None
    return found.key


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
