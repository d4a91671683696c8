"""The feature cache of a training run: what is looked up, why or why not, and what is kept."""

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
from pipeline.feature_cache.cached import Kept, KeptMedia, KeptTexts
from pipeline.feature_cache.measure import Timing, measure
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.writer import Recorder
from pipeline.run_folder.records import write_features

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a kind of media goes through the cache, and why.

    Args:
        used: whether it does.
        reason: in a few words.
        producer: the key of its encoder; empty where it makes no features that can be kept.
        known: features that were there at the start.
        timing: what was measured, if anything was.
    """

    used: bool
    reason: str
    producer: str = ""
    known: int = 0
    timing: Timing | None = None


def open_features(
    run: RunConfig, shards: ShardSet, model: nn.Module
) -> tuple[CacheReader, Recorder]:
    """Decide which kinds of media go through the cache; a collective.

    Must come before DeepSpeed takes the model apart: the fingerprint is of whole weights, and the
    encoder is timed on rank 0 alone. All ranks get rank 0's verdict.

    Args:
        run: names the folder, if there is to be a cache.
        shards: the data.
        model: built, with what trains set.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    if run.feature_cache is None:
        return CacheReader(), Recorder({})
    parts = keepable(run, model)
    stores = _stores(
        Path(run.feature_cache), [part for part in parts if not is_trainable(part.module)]
    )
    verdicts = _verdicts(run, shards, parts, stores)
    used = {kind: store for kind, store in stores.items() if verdicts[kind].used}
    slots = {p.kind: p.slot for p in parts if isinstance(p, KeptMedia) and p.kind in used}
    lookup = CacheReader(slots=slots, stores=used)
    recorder = Recorder(used)
    if isinstance(model, MultimodalLM | ImageTextModel):
        model.record_features = recorder.keep
    return lookup, recorder


def keepable(run: RunConfig, model: nn.Module) -> list[Kept]:
    """Return the parts of a stage's model whose features may be kept: encoders, text encoders."""
    if run.settings.prompt == "sentences":
        return []
    if isinstance(model, ImageTextModel):
        return [KeptMedia(slot=model.branch, module=model.encoder)]
    assert isinstance(model, MultimodalLM)
    parts: list[Kept] = [
        KeptMedia(slot=slot, module=model.encoder(slot.modality)) for slot in model.spec.inputs
    ]
    if isinstance(model, GenerativeMultimodalLM):
        ways = model.output_branches()
        slots = [way.spec for way in ways.values()]
        tokenizers = build_caption_tokenizers(slots, weights=run.weights)
        parts += [
            KeptTexts(slot=way.spec, whole=way.generator, tokenizer=tokenizers[kind])
            for kind, way in ways.items()
        ]
    return parts


def _stores(folder: Path, parts: Sequence[Kept]) -> dict[str, FeatureStore]:
    """Return the stores by kind; kinds that share an encoder share theirs."""
    by_module: dict[nn.Module, FeatureStore] = {}
    for part in parts:
        if part.module not in by_module:
            by_module[part.module] = FeatureStore(folder, part.producer())
    return {part.kind: by_module[part.module] for part in parts}


def _verdicts(
    run: RunConfig,
    shards: ShardSet,
    parts: Sequence[Kept],
    stores: Mapping[str, FeatureStore],
) -> dict[str, Verdict]:
    """Return rank 0's verdicts, on every rank; its mistakes are everyone's, so that none waits."""
    told: list[dict[str, Verdict] | str] = [{}]
    if dist.get_rank() == 0:
        try:
            verdicts = {
                part.kind: _verdict(run, shards, part, stores.get(part.kind)) for part in parts
            }
            for kind, verdict in verdicts.items():
                log.info("features of %s: %s", kind, verdict.reason)
            write_features(Path(run.output), {kind: asdict(v) for kind, v in verdicts.items()})
            told = [verdicts]
        except UserError as error:
            told = [str(error)]
    dist.broadcast_object_list(told)
    if isinstance(told[0], str):
        raise UserError(told[0])
    return told[0]


def _verdict(run: RunConfig, shards: ShardSet, part: Kept, store: FeatureStore | None) -> Verdict:
    if store is None:
        return Verdict(used=False, reason="not kept, since the encoder trains in this stage")
    if not store.folder.is_dir():
        store.create()
    producer, known = store.folder.name, len(store)
    if run.feature_cache_mode == "always":
        reason = f"used, as --feature-cache-mode says; {known} known"
        return Verdict(used=True, reason=reason, producer=producer, known=known)
    if not store.writable:
        raise UserError(
            f"{store.folder}: cannot be written, which measuring needs; "
            "--feature-cache-mode always reads from it all the same"
        )
    outputs = run.settings.output_branches(run.system.model)
    timing = measure(shards, part, outputs, store, device())
    if timing is None:
        return Verdict(used=False, reason=f"not used: the data hold no {part.kind} to time")
    reason = (
        f"{'used' if timing.faster else 'not used'}; decoding {1000 * timing.decode:.3g} ms and "
        f"encoding {1000 * timing.encode:.3g} ms a medium, reading {1000 * timing.read:.3g} ms; "
        f"{known} known"
    )
    return Verdict(used=timing.faster, reason=reason, producer=producer, known=known, timing=timing)
