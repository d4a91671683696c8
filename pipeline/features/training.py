"""The feature cache of a training run: what is looked up, why or why not, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from torch import nn

from etl.command import UserError
from etl.shards import ShardSet
from model.features import trains
from model.mmllm import MultimodalLM
from model.objectives.image_text import ImageTextModel
from model.spec import InputSlot
from pipeline.config import RunConfig
from pipeline.engine import device
from pipeline.features.lookup import Lookup
from pipeline.features.measure import Timing, measure
from pipeline.features.producer import encoder_producer
from pipeline.features.recorder import Recorder
from pipeline.features.store import FeatureStore
from pipeline.records import write_features

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


def open_features(run: RunConfig, shards: ShardSet, model: nn.Module) -> tuple[Lookup, Recorder]:
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
    if run.features is None:
        return Lookup(), Recorder({})
    slots = dict(encoders(run, model))
    stores = _stores(
        Path(run.features), {k: pair for k, pair in slots.items() if not trains(pair[1])}
    )
    verdicts = _verdicts(run, shards, slots, stores)
    used = {kind: store for kind, store in stores.items() if verdicts[kind].used}
    lookup = Lookup(slots={kind: slots[kind][0] for kind in used}, stores=used)
    recorder = Recorder(used)
    if isinstance(model, MultimodalLM | ImageTextModel):
        model.keep = recorder.keep
    return lookup, recorder


def encoders(run: RunConfig, model: nn.Module) -> Mapping[str, tuple[InputSlot, nn.Module]]:
    """Return the slots whose media a stage encodes, with their encoders, by modality."""
    if run.settings.prompt == "sentences":
        return {}
    if isinstance(model, ImageTextModel):
        return {model.slot.modality: (model.slot, model.encoder)}
    assert isinstance(model, MultimodalLM)
    return {slot.modality: (slot, model.encoder(slot.modality)) for slot in model.spec.inputs}


def _stores(
    folder: Path, slots: Mapping[str, tuple[InputSlot, nn.Module]]
) -> dict[str, FeatureStore]:
    """Return the stores by modality; modalities that share an encoder share theirs."""
    by_encoder: dict[nn.Module, FeatureStore] = {}
    for slot, encoder in slots.values():
        if encoder not in by_encoder:
            by_encoder[encoder] = FeatureStore(folder, encoder_producer(slot, encoder))
    return {kind: by_encoder[encoder] for kind, (_, encoder) in slots.items()}


def _verdicts(
    run: RunConfig,
    shards: ShardSet,
    slots: Mapping[str, tuple[InputSlot, nn.Module]],
    stores: Mapping[str, FeatureStore],
) -> dict[str, Verdict]:
    """Return rank 0's verdicts, on every rank; its mistakes are everyone's, so that none waits."""
    told: list[dict[str, Verdict] | str] = [{}]
    if dist.get_rank() == 0:
        try:
            verdicts = {
                kind: _verdict(run, shards, slot, encoder, stores.get(kind))
                for kind, (slot, encoder) in slots.items()
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


def _verdict(
    run: RunConfig,
    shards: ShardSet,
    slot: InputSlot,
    encoder: nn.Module,
    store: FeatureStore | None,
) -> Verdict:
    if store is None:
        return Verdict(used=False, reason="not kept, since the encoder trains in this stage")
    if not store.folder.is_dir():
        store.create()
    producer, known = store.folder.name, len(store)
    if run.features_mode == "always":
        reason = f"used, as --features-mode says; {known} known"
        return Verdict(used=True, reason=reason, producer=producer, known=known)
    if not store.writable:
        raise UserError(
            f"{store.folder}: cannot be written, which measuring needs; "
            "--features-mode always reads from it all the same"
        )
    timing = measure(shards, slot, encoder, store, device())
    if timing is None:
        return Verdict(used=False, reason=f"not used: the data hold no {slot.modality} to time")
    reason = (
        f"{'used' if timing.faster else 'not used'}; decoding {1000 * timing.decode:.3g} ms and "
        f"encoding {1000 * timing.encode:.3g} ms a medium, reading {1000 * timing.read:.3g} ms; "
        f"{known} known"
    )
    return Verdict(used=timing.faster, reason=reason, producer=producer, known=known, timing=timing)
