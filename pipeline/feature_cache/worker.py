"""One worker of the Ray job that fills the cache: decodes and encodes a range of media.

Shapes: k media of a range, x media (or texts) of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from etl.storage.shards import ShardSet
from model.build import build_caption_tokenizers, build_inputs, build_text_encoders
from model.weights import assign
from pipeline.config.run_config import RunConfig
from pipeline.feature_cache.cache_key import Producer
from pipeline.feature_cache.cached import Kept, KeptMedia, KeptTexts
from pipeline.feature_cache.feature_file import Row, write_part
from pipeline.feature_cache.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Range:
    """Some media of one kind, which become one file.

    Args:
        kind: of media.
        places_k2: of each, the row of the data and its number among the sample's media.
    """

    kind: str
    places_k2: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A medium that cannot be decoded, and why."""

    row: int
    id: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What became of a range: its media are `encoded`, `there` already, or unreadable."""

    kind: str
    encoded: int
    there: int
    unreadable: tuple[Unreadable, ...]

    @property
    def media(self) -> int:
        """All of the range."""
        return self.encoded + self.there + len(self.unreadable)


class Filler:
    """Builds the frozen parts of a stage once, and fills range after range.

    Args:
        run: names the model, the stage, the data, and as its output the cache's folder.
        initial: the file of trained weights that the stage starts from, if there is one.
        batch: media that an encoder gets at once.
        threads: that decode and, without a GPU, compute.
        device: of the encoders.
    """

    def __init__(
        self, run: RunConfig, initial: Path | None, *, batch: int, threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self._batch, self._device = batch, device
        self._pool = ThreadPoolExecutor(threads)
        self._shards = ShardSet([Path(folder) for folder in run.data], verify=False)
        self._parts: dict[str, Kept] = {part.kind: part for part in frozen_parts(run, initial)}
        self.producers = {kind: part.producer() for kind, part in self._parts.items()}
        for part in self._parts.values():
            part.whole.to(device).eval()
        self._stores = {
            kind: FeatureStore(Path(run.output), producer)
            for kind, producer in self.producers.items()
        }

    def __call__(self, item: Range | None) -> Filled | dict[str, Producer]:
        """Fill a range; without one, return who the producers are, by modality."""
        if item is None:
            return self.producers
        there: list[bytes] = []
        unreadable: list[Unreadable] = []
        media = self._decoded(item, there, unreadable)
        write_part(self._stores[item.kind].folder, self._rows(item.kind, media))
        return Filled(
            kind=item.kind,
            encoded=len(item.places_k2) - len(there) - len(unreadable),
            there=len(there),
            unreadable=tuple(unreadable),
        )

    def _decoded(
        self, item: Range, there: list[bytes], unreadable: list[Unreadable]
    ) -> Iterator[tuple[bytes, Tensor]]:
        """Yield key and encoder's input of each medium that is missing and can be read, in order.

        Threads decode a batch ahead, while the encoder is at the one before. The others are put
        into `there` or `unreadable`.
        """
        pending: list[Future[tuple[bytes, Tensor | None] | Unreadable]] = []
        places = iter(item.places_k2.tolist())
        while True:
            for place in itertools.islice(places, 2 * self._batch - len(pending)):
                pending.append(self._pool.submit(self._decode, item.kind, *place))
            if not pending:
                return
            found = pending.pop(0).result()
            if isinstance(found, Unreadable):
                unreadable.append(found)
            elif found[1] is None:
                there.append(found[0])
            else:
                yield found[0], found[1]

    def _decode(self, kind: str, row: int, place: int) -> tuple[bytes, Tensor | None] | Unreadable:
        """Return a medium's key and values; no values if its features are there."""
        part, sample = self._parts[kind], self._shards[row]
        key = part.key(sample, place)
        if key in self._stores[kind]:
            return key, None
        try:
            return key, part.values(sample, place)
        except (OSError, ValueError) as error:
            return Unreadable(row=row, id=sample.id, kind=kind, reason=str(error))

    @torch.no_grad()
    def _rows(self, kind: str, media: Iterable[tuple[bytes, Tensor]]) -> Iterator[Row]:
        pending = iter(media)
        while batch := list(itertools.islice(pending, self._batch)):
            values = torch.stack([values for _, values in batch]).to(self._device)
            features_x = self._parts[kind].make(values).cpu()
            for (key, _), features in zip(batch, features_x, strict=True):
                yield Row(key=key, features=features)


def frozen_parts(run: RunConfig, initial: Path | None) -> list[Kept]:
    """Build the parts of a stage that stay frozen and make features, as training has them."""
    spec, settings = run.system.model, run.settings
    encoders = _frozen_encoders(run, initial)
    parts: list[Kept] = [
        KeptMedia(slot=slot, module=encoders[slot.modality])
        for slot in spec.inputs
        if slot.modality in encoders
    ]
    slots = settings.output_branches(spec)
    tokenizers = build_caption_tokenizers(slots, weights=run.weights)
    teachers = build_text_encoders(spec, settings, weights=run.weights, seed=run.seed)
    parts += [
        KeptTexts(slot=slot, whole=teachers[slot.modality], tokenizer=tokenizers[slot.kind])
        for slot in slots
    ]
    return parts


def _frozen_encoders(run: RunConfig, initial: Path | None) -> dict[str, nn.Module]:
    """Build the encoders that stay frozen in a stage, by modality."""
    spec, settings = run.system.model, run.settings
    parts = build_inputs(spec, settings, weights=run.weights, seed=run.seed)
    owners = {slot.modality: slot.encoder_of or slot.modality for slot in spec.inputs}
    holder = nn.Module()
    holder.inputs = nn.ModuleDict(
        {kind: nn.ModuleDict({"encoder": parts[kind]["encoder"]}) for kind in set(owners.values())}
    )
    names = [name for name, _ in holder.named_parameters()]
    if initial is not None:
        stored = {name: t for name, t in load_file(initial).items() if name in names}
        assign(holder, stored, str(initial))
    trained = {n for n in names if any(fnmatchcase(n, p) for p in settings.trainable)}
    return {
        slot.modality: parts[owner]["encoder"]
        for slot in spec.inputs
        if (owner := owners[slot.modality])
        and not any(name.startswith(f"inputs.{owner}.encoder.") for name in trained)
    }
