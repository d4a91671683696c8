"""A worker of the Ray job that precomputes features: decodes and encodes a range of media.

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
from pipeline.feature_cache.cache_key import EncoderId
from pipeline.feature_cache.cached_encoder import (
    CachedEncoder,
    CachedMediaEncoder,
    CachedTextEncoder,
)
from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file
from pipeline.feature_cache.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class MediaRange:
    """Media of one kind whose features go to one file.

    Args:
        kind: of media.
        media_k2: the row of each in the data, and its number among the sample's media.
    """

    kind: str
    media_k2: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class UnreadableMedium:
    """A medium that cannot be decoded, and why."""

    row: int
    id: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RangeResult:
    """The result of a range: how many media were encoded, already cached, or unreadable."""

    kind: str
    encoded: int
    cached: int
    unreadable: tuple[UnreadableMedium, ...]

    @property
    def media(self) -> int:
        """All media of the range."""
        return self.encoded + self.cached + len(self.unreadable)


class PrecomputeWorker:
    """Builds the frozen encoders of a stage once, then encodes one range after another.

    Args:
        run: names the model, the stage, the data, and as its output the cache's folder.
        initial: the file of trained weights that the stage starts from, if there is one.
        batch: media per encoder call.
        threads: for decoding and, without a GPU, for computing.
        device: of the encoders.
    """

    def __init__(
        self, run: RunConfig, initial: Path | None, *, batch: int, threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self._batch, self._device = batch, device
        self._pool = ThreadPoolExecutor(threads)
        self._shards = ShardSet([Path(folder) for folder in run.data], verify=False)
        self._encoders = {encoder.kind: encoder for encoder in frozen_encoders(run, initial)}
        self.encoder_ids = {kind: enc.encoder_id() for kind, enc in self._encoders.items()}
        for encoder in self._encoders.values():
            encoder.parent.to(device).eval()
        self._stores = {
            kind: FeatureStore(Path(run.output), encoder_id)
            for kind, encoder_id in self.encoder_ids.items()
        }

    def __call__(self, item: MediaRange | None) -> RangeResult | dict[str, EncoderId]:
        """Encode a range; for None, return the identities of the encoders by kind of media."""
        if item is None:
            return self.encoder_ids
        cached: list[bytes] = []
        unreadable: list[UnreadableMedium] = []
        media = self._decode_range(item, cached, unreadable)
        write_feature_file(self._stores[item.kind].folder, self._encode(item.kind, media))
        return RangeResult(
            kind=item.kind,
            encoded=len(item.media_k2) - len(cached) - len(unreadable),
            cached=len(cached),
            unreadable=tuple(unreadable),
        )

    def _decode_range(
        self, item: MediaRange, cached: list[bytes], unreadable: list[UnreadableMedium]
    ) -> Iterator[tuple[bytes, Tensor]]:
        """Yield key and encoder's input of each medium that is readable and not cached, in order.

        Threads decode the next batch while the encoder computes. All other media are appended to
        `cached` or `unreadable`.
        """
        pending: list[Future[tuple[bytes, Tensor | None] | UnreadableMedium]] = []
        media = iter(item.media_k2.tolist())
        while True:
            for row, number in itertools.islice(media, 2 * self._batch - len(pending)):
                pending.append(self._pool.submit(self._decode, item.kind, row, number))
            if not pending:
                return
            found = pending.pop(0).result()
            if isinstance(found, UnreadableMedium):
                unreadable.append(found)
            elif found[1] is None:
                cached.append(found[0])
            else:
                yield found[0], found[1]

    def _decode(
        self, kind: str, row: int, number: int
    ) -> tuple[bytes, Tensor | None] | UnreadableMedium:
        """Return a medium's key and encoder input; None as input if its features are cached."""
        encoder, sample = self._encoders[kind], self._shards[row]
        key = encoder.key(sample, number)
        if key in self._stores[kind]:
            return key, None
        try:
            return key, encoder.input_values(sample, number)
        except (OSError, ValueError) as error:
            return UnreadableMedium(row=row, id=sample.id, kind=kind, reason=str(error))

    @torch.no_grad()
    def _encode(self, kind: str, media: Iterable[tuple[bytes, Tensor]]) -> Iterator[FeatureRow]:
        pending = iter(media)
        while batch := list(itertools.islice(pending, self._batch)):
            values = torch.stack([values for _, values in batch]).to(self._device)
            features_x = self._encoders[kind].encode(values).cpu()
            for (key, _), features in zip(batch, features_x, strict=True):
                yield FeatureRow(key=key, features=features)


def frozen_encoders(run: RunConfig, initial: Path | None) -> list[CachedEncoder]:
    """Build the frozen encoders of a stage, with the weights that training gives them."""
    spec, settings = run.system.model, run.settings
    modules = _frozen_media_encoders(run, initial)
    encoders: list[CachedEncoder] = [
        CachedMediaEncoder(branch=branch, module=modules[branch.modality])
        for branch in spec.inputs
        if branch.modality in modules
    ]
    outputs = settings.output_branches(spec)
    tokenizers = build_caption_tokenizers(outputs, weights=run.weights)
    generators = build_text_encoders(spec, settings, weights=run.weights, seed=run.seed)
    encoders += [
        CachedTextEncoder(
            branch=branch,
            parent=generators[branch.modality],
            tokenizer=tokenizers[branch.kind],
        )
        for branch in outputs
    ]
    return encoders


def _frozen_media_encoders(run: RunConfig, initial: Path | None) -> dict[str, nn.Module]:
    """Build the input branches' encoders that are frozen in a stage, by modality."""
    spec, settings = run.system.model, run.settings
    modules = build_inputs(spec, settings, weights=run.weights, seed=run.seed)
    owners = {branch.modality: branch.encoder_of or branch.modality for branch in spec.inputs}
    # The parameter names of the whole model, for checkpoints and trainable patterns.
    model = nn.Module()
    model.inputs = nn.ModuleDict(
        {kind: nn.ModuleDict({"encoder": modules[kind]["encoder"]}) for kind in owners.values()}
    )
    names = [name for name, _ in model.named_parameters()]
    if initial is not None:
        stored = {name: t for name, t in load_file(initial).items() if name in names}
        assign(model, stored, str(initial))
    trained = {n for n in names if any(fnmatchcase(n, p) for p in settings.trainable)}
    return {
        branch.modality: modules[owner]["encoder"]
        for branch in spec.inputs
        if (owner := owners[branch.modality])
        and not any(name.startswith(f"inputs.{owner}.encoder.") for name in trained)
    }
