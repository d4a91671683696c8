"""A worker of the job that precomputes features: decodes and encodes a range of media.

Shapes: k media of a range, x media (or texts) of a batch.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from etl.storage.shards import ShardSet
from model.build import build_caption_tokenizers, build_inputs, build_target_encoders, preprocess
from model.features import is_trainable
from model.freeze import set_trainable
from model.output_branch import target_embeds, target_latents
from model.segments import encode_segments
from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec
from model.weights import assign
from pipeline.config.run_config import RunConfig
from pipeline.data.generation_targets import captions, read_target
from pipeline.data.readers import read_medium
from pipeline.feature_cache.cache_key import (
    EncoderId,
    check_digest,
    latents_encoder_id,
    media_encoder_id,
    medium_digest,
    medium_key,
    target_medium_key,
    text_encoder_id,
    text_key,
)
from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file

Decoded = tuple[bytes, Tensor | str]
"""A medium's key, and its encoder input or why it is unreadable."""


@dataclass(frozen=True, kw_only=True)
class MediaRange:
    """Media of one kind whose features go to one file.

    Args:
        kind: an input modality, or of generated media `to_…` or `to_….latents`.
        media_k2: the row of each in the data, and its number among the sample's media.
    """

    kind: str
    media_k2: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RangeResult:
    """How many media of a range there were, and how many were readable and thus encoded."""

    kind: str
    media: int
    encoded: int


class PrecomputeWorker:
    """Builds the frozen encoders of a stage once, then encodes one range after another.

    Args:
        run: names the model, the stage, the data, and as its output the cache's folder.
        initial: the file of trained weights that the stage starts from, if there is one.
        batch: media per encoder call.
        threads: for decoding and, without a GPU, for computing.
        device: of the encoders.

    Attributes:
        encoder_ids: the identities of the encoders, by kind of media.
    """

    def __init__(
        self, run: RunConfig, initial: Path | None, *, batch: int, threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self._batch, self._device, self._folder = batch, device, Path(run.output)
        self._pool = ThreadPoolExecutor(threads)
        self._shards = ShardSet([Path(folder) for folder in run.data], verify=False)
        spec, settings = run.system.model, run.settings
        encoders = frozen_encoders(run, initial)
        outputs = settings.output_branches(spec) if settings.generation is not None else ()
        latents = {branch.latents_kind: branch for branch in settings.denoising_branches(spec)}
        generators = build_target_encoders(spec, settings, weights=run.weights, seed=run.seed)
        self._inputs: dict[str, InputBranchSpec] = {
            b.modality: b for b in spec.inputs if b.modality in encoders
        }
        texts: dict[str, OutputBranchSpec] = {branch.kind: branch for branch in outputs}
        self._outputs = texts | latents
        self._tokenizers = build_caption_tokenizers(outputs, weights=run.weights)
        self._encoders = encoders
        self._generators = generators
        self.encoder_ids: dict[str, EncoderId] = {
            kind: media_encoder_id(branch, encoders[kind]) for kind, branch in self._inputs.items()
        }
        self.encoder_ids |= {
            kind: text_encoder_id(branch, generators[branch.modality])
            for kind, branch in texts.items()
        }
        self.encoder_ids |= {
            kind: latents_encoder_id(branch, generators[branch.modality])
            for kind, branch in latents.items()
        }
        for module in (*self._encoders.values(), *self._generators.values()):
            module.to(device).eval()

    def __call__(self, item: MediaRange | None) -> RangeResult | dict[str, EncoderId]:
        """Encode a range; for None, return the encoders' identities."""
        if item is None:
            return self.encoder_ids
        self._encoded = 0
        rows = self._encode_all(item.kind, self._decode_all(item))
        write_feature_file(self._folder / self.encoder_ids[item.kind].key, rows)
        return RangeResult(kind=item.kind, media=len(item.media_k2), encoded=self._encoded)

    def _decode_all(self, item: MediaRange) -> Iterator[Decoded]:
        """Decode media in order; threads decode the next batch while the encoder computes."""
        pending: list[Future[Decoded]] = []
        media = iter(item.media_k2.tolist())
        while True:
            for row, number in itertools.islice(media, 2 * self._batch - len(pending)):
                pending.append(self._pool.submit(self._decode, item.kind, row, number))
            if not pending:
                return
            yield pending.pop(0).result()

    def _decode(self, kind: str, row: int, number: int) -> Decoded:
        sample = self._shards[row]
        medium = sample.media[number]
        if kind not in self._outputs:
            branch = self._inputs[kind]
            key = medium_key(medium_digest(medium), branch)
        elif self._embeds_text(kind):
            text = captions(sample.turns, sample.lineage)[number]
            return text_key(text), torch.tensor(self._tokenizers[kind](text))
        else:
            key = target_medium_key(medium_digest(medium), self._outputs[kind])
        try:
            check_digest(medium)
            if kind in self._outputs:
                return key, read_target(medium, self._outputs[kind])
            return key, preprocess(branch.encoder, read_medium(medium, branch))
        except (OSError, ValueError) as error:
            return key, str(error)

    def _embeds_text(self, kind: str) -> bool:
        """Return whether the features of generated media are made from captions alone."""
        branch = self._outputs[kind]
        return kind == branch.kind and not branch.generator.embeds_media

    @torch.no_grad()
    def _encode_all(self, kind: str, media: Iterable[Decoded]) -> Iterator[FeatureRow]:
        pending = iter(media)
        while batch := list(itertools.islice(pending, self._batch)):
            readable = [values for _, values in batch if isinstance(values, Tensor)]
            features = iter(self._encode(kind, torch.stack(readable)) if readable else ())
            self._encoded += len(readable)
            for key, values in batch:
                found = values if isinstance(values, str) else next(features)
                yield FeatureRow(key=key, features=found)

    def _encode(self, kind: str, values: Tensor) -> Tensor:
        """Return the features of a batch (x, …) on the CPU."""
        values = values.to(self._device)
        if kind in self._outputs:
            return self._encode_target(kind, values).cpu()
        jointly = self._inputs[kind].encoder.encodes_jointly
        return encode_segments(self._encoders[kind], values, jointly=jointly).cpu()

    def _encode_target(self, kind: str, values: Tensor) -> Tensor:
        branch = self._outputs[kind]
        generator = self._generators[branch.modality]
        if kind == branch.latents_kind:
            return target_latents(generator, values)
        if self._embeds_text(kind):
            return target_embeds(generator, values, None)
        ids = values.new_zeros(len(values), sum(branch.generator.caption_lengths)).long()
        return target_embeds(generator, ids, values)


def frozen_encoders(run: RunConfig, initial: Path | None) -> dict[str, nn.Module]:
    """Build the encoders that are frozen in a stage, by modality, with the weights of training."""
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
    set_trainable(model, [p for p in settings.trainable if fnmatch.filter(names, p)])
    encoders = {kind: modules[owner]["encoder"] for kind, owner in owners.items()}
    return {kind: encoder for kind, encoder in encoders.items() if not is_trainable(encoder)}
