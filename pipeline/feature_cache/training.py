"""The feature cache of a training run: complete for the stage's data, or an error."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from torch import nn

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.build import build_target_encoders
from model.features import is_trainable
from model.multimodal_lm import MultimodalLM
from model.pretraining.image_text import ImageTextModel
from pipeline.config.files import CONFIG_FILE
from pipeline.config.run_config import RunConfig
from pipeline.feature_cache.cache_key import (
    EncoderId,
    latents_encoder_id,
    media_encoder_id,
    text_encoder_id,
)
from pipeline.feature_cache.distinct_media import distinct_media
from pipeline.feature_cache.feature_file import DamagedFileError
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore, feature_stores

log = logging.getLogger(__name__)


def open_feature_cache(run: RunConfig, shards: ShardSet, model: nn.Module) -> CacheReader | None:
    """Open a run's feature cache, if it uses one, for all frozen encoders; a collective.

    The model is told for which kinds of media batches will give features. Must be called before
    DeepSpeed partitions the model: the cache keys are of whole weights. Rank 0 checks that the
    cache is complete; its UserError is raised on all ranks, so that none waits for another.

    Args:
        run: names the cache's folder, if a cache is used.
        shards: the data.
        model: built, with its trainable parameters set.

    Raises:
        UserError: the cache is not complete for these data and encoders, or damaged.
    """
    if run.feature_cache is None:
        return None
    shared: list[dict[str, FeatureStore] | str] = [""]
    if dist.get_rank() == 0:
        try:
            shared = [_complete_stores(run, shards, model)]
        except UserError as error:
            shared = [str(error)]
    dist.broadcast_object_list(shared)
    stores = shared[0]
    if isinstance(stores, str):
        raise UserError(stores)
    assert isinstance(model, MultimodalLM | ImageTextModel)
    model.feature_kinds = frozenset(stores)
    return CacheReader(model=run.system.model, stores=stores, command=_command(run))


def _complete_stores(run: RunConfig, shards: ShardSet, model: nn.Module) -> dict[str, FeatureStore]:
    """Return the store of each kind whose encoder is frozen; raises UserError if one lacks media.

    Only keys are compared, those of the shards' columns with those in the cache: so data may be any
    mix of folders whose media have been cached. Checksums are compared when features are read.
    """
    assert run.feature_cache is not None
    folder = Path(run.feature_cache)
    stores = feature_stores(folder, encoder_ids(run, model))
    outputs = run.settings.output_branches(run.system.model)
    missing = []
    try:
        for kind, media in distinct_media(shards, run.system.model, outputs, stores).items():
            total = len(media.prefixes_k)
            lacks = total - int(stores[kind].contains(media.prefixes_k).sum())
            if lacks:
                missing.append(f"{lacks:,} of {total:,} {kind} ({stores[kind].folder.name})")
            else:
                log.info("features of %s: %d from %s", kind, total, stores[kind].folder)
    except DamagedFileError as error:
        raise UserError(f"{error}; `{_command(run)}` makes its features again") from None
    if missing:
        raise UserError(
            f"--feature-cache {folder}: lacks features of these data by the run's encoders: "
            f"{', '.join(missing)}; `{_command(run)}` makes them"
        )
    return stores


def encoder_ids(run: RunConfig, model: nn.Module) -> Mapping[str, EncoderId]:
    """Return the identity of each encoder that is frozen in a run, by kind of media.

    Raises:
        UserError: there is none.
    """
    spec = run.system.model
    encoders: dict[str, nn.Module] = {}
    if isinstance(model, ImageTextModel):
        encoders = {model.branch.modality: model.encoder}
    elif isinstance(model, MultimodalLM) and run.settings.prompt != "sentences":
        encoders = {branch.modality: model.encoder(branch.modality) for branch in spec.inputs}
    ids: dict[str, EncoderId] = {}
    for kind, encoder in encoders.items():
        if is_trainable(encoder):
            log.info("features of %s: not cached, since the encoder is trained in this stage", kind)
        else:
            branch = spec.input_branch(kind)
            ids[kind] = ids.get(branch.encoder_of or "") or media_encoder_id(branch, encoder)
    if isinstance(model, MultimodalLM) and run.settings.generation is not None:
        for kind, output in model.output_branches().items():
            ids[kind] = text_encoder_id(output.spec, output.generator)
    if branches := run.settings.denoising_branches(spec):
        # Built for their identity alone: training does not hold the encoders of autoencoders.
        own = build_target_encoders(spec, run.settings, weights=run.weights, seed=run.seed)
        for each in branches:
            ids[each.latents_kind] = latents_encoder_id(each, own.pop(each.modality))
    if not ids:
        raise UserError(
            f"--feature-cache: stage {run.stage} of {run.system.name} uses no frozen encoder; "
            "leave the option out"
        )
    return ids


def _command(run: RunConfig) -> str:
    """Return the command that completes a run's cache."""
    config, cache = Path(run.output) / CONFIG_FILE, str(run.feature_cache)
    words = ["features", str(config), "--stage", run.stage, "--output", cache]
    return shlex.join(["python", "-m", "pipeline", *words])
