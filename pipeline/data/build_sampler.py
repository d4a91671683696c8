"""From a run's configuration to its schedule: which samples come when, and what they cost."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from etl.storage.manifest import read_manifest
from model.spec.system import InitStage
from pipeline.config.run_config import RunConfig, packs
from pipeline.data.lengths import read_lengths
from pipeline.data.mixture import sources
from pipeline.data.packing import Layout, PackedLayout, PaddedLayout
from pipeline.data.sampler import BatchSampler, CostModel
from pipeline.data.shuffle import ShuffledStream
from pipeline.data.tokenize import SampleTokenizer
from pipeline.forecast.forecast import stage_costs


def make_sampler(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> BatchSampler:
    """Plan a run's samples; reads texts where that was never done, and no medium.

    Raises:
        UserError: a mistake in the data or the mix.
    """
    settings = run.settings
    folders = [Path(folder) for folder in run.data]
    rows = [read_manifest(folder).rows for folder in folders]
    order = ShuffledStream(
        sources=sources(run.data, rows, run.mix), seed=run.seed, epochs=settings.epochs
    )
    layout, prices = _layout(run), CostModel(media={})
    lengths = None
    if not isinstance(settings, InitStage):
        drafter = SampleTokenizer(
            run.system.model,
            tokenizer,
            prompt=settings.prompt,
            max_tokens=settings.max_tokens,
            outputs=settings.output_branches(run.system.model),
        )
        kinds = settings.kinds(run.system.model)
        lengths = read_lengths(folders, drafter, kinds, spare=Path(run.output))
        prices = (
            _prices(run)
            if isinstance(layout, PackedLayout)
            else CostModel(media=dict.fromkeys(kinds, 0))
        )
    return BatchSampler(
        order=order,
        global_batch=settings.global_batch,
        layout=layout,
        lengths=lengths,
        prices=prices,
    )


def _layout(run: RunConfig) -> Layout:
    settings = run.settings
    if packs(run.system.model, settings):
        return PackedLayout(
            tokens=settings.micro_batch * settings.max_tokens,
            media=settings.micro_batch * settings.pack_media,
        )
    compares = isinstance(settings, InitStage)
    return PaddedLayout(most=settings.micro_batch, order="position" if compares else "length")


def _prices(run: RunConfig) -> CostModel:
    """Return what a sample's parts cost in FLOPs, recomputation included."""
    costs = stage_costs(run.system.model, run.settings)
    return CostModel(
        position=costs.position.device,
        target=costs.target.device,
        pair=costs.pair.device,
        media={kind: costs.medium(kind).device for kind in run.settings.kinds(run.system.model)},
    )
