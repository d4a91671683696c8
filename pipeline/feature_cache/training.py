"""The feature cache of a training run: which kinds of media use it, and why or why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from torch import nn

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.build import build_caption_tokenizers
from model.features import is_trainable
from model.generative_lm import GenerativeMultimodalLM
from model.multimodal_lm import MultimodalLM
from model.pretraining.image_text import ImageTextModel
from pipeline.config.run_config import RunConfig
from pipeline.distributed import device
from pipeline.feature_cache.cached_encoder import (
    CachedEncoder,
    CachedMediaEncoder,
    CachedTextEncoder,
)
from pipeline.feature_cache.measure import Timing, measure
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.writer import FeatureWriter
from pipeline.run_folder.records import write_features

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheDecision:
    """Whether a kind of media uses the cache, and why.

    Args:
        used: whether it does.
        reason: in a few words.
        encoder: the key of its encoder; empty where its features cannot be cached.
        cached: features in the cache at the start.
        timing: the measurement, if there was one.
    """

    used: bool
    reason: str
    encoder: str = ""
    cached: int = 0
    timing: Timing | None = None


def open_feature_cache(
    run: RunConfig, shards: ShardSet, model: nn.Module
) -> tuple[CacheReader, FeatureWriter]:
    """Decide which kinds of media use the cache, and open it; a collective.

    Must be called before DeepSpeed partitions the model: the fingerprint is of whole weights, and
    the encoder is timed on rank 0 alone. All ranks get rank 0's decisions.

    Args:
        run: names the cache's folder, if a cache is used.
        shards: the data.
        model: built, with its trainable parameters set.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    if run.feature_cache is None:
        return CacheReader(), FeatureWriter({})
    encoders = cacheable_encoders(run, model)
    frozen = [encoder for encoder in encoders if not is_trainable(encoder.module)]
    stores = _stores(Path(run.feature_cache), frozen)
    decisions = _decide(run, shards, encoders, stores)
    used = {kind: store for kind, store in stores.items() if decisions[kind].used}
    branches = {
        encoder.kind: encoder.branch
        for encoder in encoders
        if isinstance(encoder, CachedMediaEncoder) and encoder.kind in used
    }
    writer = FeatureWriter(used)
    if isinstance(model, MultimodalLM | ImageTextModel):
        model.record_features = writer.add
    return CacheReader(branches=branches, stores=used), writer


def cacheable_encoders(run: RunConfig, model: nn.Module) -> list[CachedEncoder]:
    """Return the encoders of a stage's model whose outputs could be cached if they are frozen."""
    if run.settings.prompt == "sentences":
        return []
    if isinstance(model, ImageTextModel):
        return [CachedMediaEncoder(branch=model.branch, module=model.encoder)]
    assert isinstance(model, MultimodalLM)
    encoders: list[CachedEncoder] = [
        CachedMediaEncoder(branch=branch, module=model.encoder(branch.modality))
        for branch in model.spec.inputs
    ]
    if isinstance(model, GenerativeMultimodalLM):
        outputs = model.output_branches()
        specs = [output.spec for output in outputs.values()]
        tokenizers = build_caption_tokenizers(specs, weights=run.weights)
        encoders += [
            CachedTextEncoder(
                branch=output.spec, parent=output.generator, tokenizer=tokenizers[kind]
            )
            for kind, output in outputs.items()
        ]
    return encoders


def _stores(folder: Path, encoders: Sequence[CachedEncoder]) -> dict[str, FeatureStore]:
    """Return the stores by kind; kinds that share an encoder share the store."""
    by_module: dict[nn.Module, FeatureStore] = {}
    for encoder in encoders:
        if encoder.module not in by_module:
            by_module[encoder.module] = FeatureStore(folder, encoder.encoder_id())
    return {encoder.kind: by_module[encoder.module] for encoder in encoders}


def _decide(
    run: RunConfig,
    shards: ShardSet,
    encoders: Sequence[CachedEncoder],
    stores: Mapping[str, FeatureStore],
) -> dict[str, CacheDecision]:
    """Return rank 0's decisions on every rank; its UserError too, so that no rank hangs."""
    shared: list[dict[str, CacheDecision] | str] = [{}]
    if dist.get_rank() == 0:
        try:
            decisions = {
                encoder.kind: _decision(run, shards, encoder, stores.get(encoder.kind))
                for encoder in encoders
            }
            for kind, decision in decisions.items():
                log.info("features of %s: %s", kind, decision.reason)
            write_features(Path(run.output), {kind: asdict(d) for kind, d in decisions.items()})
            shared = [decisions]
        except UserError as error:
            shared = [str(error)]
    dist.broadcast_object_list(shared)
    if isinstance(shared[0], str):
        raise UserError(shared[0])
    return shared[0]


def _decision(
    run: RunConfig, shards: ShardSet, encoder: CachedEncoder, store: FeatureStore | None
) -> CacheDecision:
    if store is None:
        reason = "not cached, since the encoder is trained in this stage"
        return CacheDecision(used=False, reason=reason)
    if not store.folder.is_dir():
        store.create()
    key, cached = store.folder.name, len(store)
    if run.feature_cache_mode == "always":
        reason = f"used, because of --feature-cache-mode always; {cached} cached"
        return CacheDecision(used=True, reason=reason, encoder=key, cached=cached)
    if not store.writable:
        raise UserError(
            f"{store.folder}: cannot be written, which the measurement needs; "
            "--feature-cache-mode always reads from it without one"
        )
    outputs = run.settings.output_branches(run.system.model)
    timing = measure(shards, encoder, outputs, store, device())
    if timing is None:
        reason = f"not used: the data hold no {encoder.kind} to measure"
        return CacheDecision(used=False, reason=reason)
    used = timing.reading_is_faster
    reason = (
        f"{'used' if used else 'not used'}; decoding {1000 * timing.decode:.3g} ms and "
        f"encoding {1000 * timing.encode:.3g} ms per medium, reading {1000 * timing.read:.3g} ms; "
        f"{cached} cached"
    )
    return CacheDecision(used=used, reason=reason, encoder=key, cached=cached, timing=timing)
