"""The batch sampler: which samples each rank gets in each micro-step, without reading any.

The result is a pure function of the data, the mix, the seed and the step; the number of ranks only
decides how the samples of a step are divided. Seeking to a step is as cheap as the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from model.spec.rlhf import Grpo
from model.spec.system import InitStage, RlhfStage
from pipeline.config.run_config import RunConfig, packs
from pipeline.data.lengths import AnyTokenizer, Lengths, read_lengths
from pipeline.data.mixture import build_sources
from pipeline.data.packing import Layout, PackedLayout, PaddedLayout, SampleSizes, assign_to_ranks
from pipeline.data.preferences import PreferenceTokenizer
from pipeline.data.removed import RemovedRows, read_removed
from pipeline.data.rollout_prompts import RolloutTokenizer
from pipeline.data.shuffle import ShuffledStream
from pipeline.data.tokenize import SampleTokenizer, check_max_tokens
from pipeline.forecast.forecast import stage_costs

_POSITIONS = 1 << 20
"""Positions of the stream that are looked at together."""


@dataclass(frozen=True, kw_only=True)
class SampleRef:
    """One sample of a step.

    Args:
        position: in the stream of samples.
        row: of the data.
        skip_reason: why it cannot be used, as far as its text shows; None to try to read it.
    """

    position: int
    row: int
    skip_reason: str | None = None


Bin = list[SampleRef]
"""The samples of one rank and micro-step."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The cost of a sample in any one unit, such as FLOPs; see `pipeline.forecast.flops`.

    Args:
        per_token, per_target: of the backbone.
        per_pair: of tokens of a sample that attend to each other.
        per_medium: of each kind, before the backbone.
    """

    per_token: float = 1.0
    per_target: float = 0.0
    per_pair: float = 0.0
    per_medium: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """The samples of every step.

    Args:
        stream: the order of the samples, those included that were removed since.
        removed: which those are.
        global_batch: samples of a step.
        layout: how the samples of a bin are arranged in a batch.
        lengths: of all samples; None where they are not needed.
        cost_model: of the samples; only used for packing.
    """

    stream: ShuffledStream
    removed: RemovedRows = field(default_factory=RemovedRows)
    global_batch: int
    layout: Layout
    lengths: Lengths | None
    cost_model: CostModel

    @property
    def steps(self) -> int:
        """Steps of all epochs; the last one may have fewer samples."""
        return math.ceil(len(self.stream) / self.global_batch)

    def step(self, step: int, ranks: int) -> list[list[Bin]]:
        """Return the bins of a step (counted from 0), by micro-step and rank."""
        first = step * self.global_batch
        positions, rows = self.rows(first, first + self.global_batch)
        skip_reasons = self.lengths.skip_reasons if self.lengths else {}
        samples = [
            SampleRef(position=position, row=row, skip_reason=skip_reasons.get(row))
            for position, row in zip(positions.tolist(), rows.tolist(), strict=True)
        ]
        assignment = assign_to_ranks(self._sizes(rows), self.layout, ranks)
        return [
            [[samples[number] for number in numbers] for numbers in micro_step]
            for micro_step in assignment
        ]

    def rows(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions in [first, end) whose samples are still there, and their rows."""
        planned = self.stream.rows(first, end)
        there = ~self.removed.contains(planned)
        return first + np.flatnonzero(there), self.removed.present_rows(planned[there])

    def _sizes(self, rows: NDArray[np.int64]) -> SampleSizes:
        zeros = np.zeros(len(rows))
        media_n, encoder_cost_n = zeros.astype(np.int64), zeros
        if self.lengths is None:
            return SampleSizes(
                tokens_n=media_n, media_n=media_n, encoder_cost_n=zeros, backbone_cost_n=zeros
            )
        costs = self.cost_model
        tokens_n = self.lengths.tokens_n[rows].astype(np.int64)
        for kind, count_n in self.lengths.media_n.items():
            media_n = media_n + count_n[rows]
            encoder_cost_n = encoder_cost_n + costs.per_medium[kind] * count_n[rows]
        return SampleSizes(
            tokens_n=tokens_n,
            media_n=media_n,
            encoder_cost_n=encoder_cost_n,
            backbone_cost_n=costs.per_token * tokens_n
            + costs.per_target * self.lengths.targets_n[rows]
            + costs.per_pair * (tokens_n * (tokens_n + 1) / 2),
        )


def steps_with(
    stream: ShuffledStream,
    global_batch: int,
    rows_r: NDArray[np.int64],
    steps: range,
    *,
    skipped: Collection[int],
) -> list[int]:
    """Return which steps had any of some samples.

    Args:
        stream: the order of the samples.
        global_batch: samples of a step.
        rows_r: rows of the data as they first were.
        steps: the steps to look at, counted from 1.
        skipped: positions of samples that were skipped; they do not count.
    """
    end = min((steps.stop - 1) * global_batch, len(stream))
    found = [np.empty(0, np.int64)]
    for first in range((steps.start - 1) * global_batch, end, _POSITIONS):
        rows = stream.rows(first, min(end, first + _POSITIONS))
        found.append(first + np.flatnonzero(np.isin(rows, rows_r)))
    positions = np.setdiff1d(np.concatenate(found), np.fromiter(skipped, np.int64))
    return [int(step) for step in np.unique(positions // global_batch) + 1]


def build_stream(run: RunConfig) -> tuple[ShuffledStream, RemovedRows]:
    """Return the order of a run's samples, and which of them were removed from its data since.

    Raises:
        UserError: a mistake in the data or the mix.
    """
    removed = read_removed(map(Path, run.data))
    sources = build_sources(run.data, [each.rows for each in removed.folders], run.mix)
    stream = ShuffledStream(sources=sources, seed=run.seed, epochs=run.settings.epochs)
    return stream, removed


def build_sampler(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> BatchSampler:
    """Build the sampler of a run; reads all texts where lengths are not cached, and no medium.

    Raises:
        UserError, SpecError: a mistake in the data or the mix, no sample that can be used, a chat
            template that cannot be used, or longer samples than the backbone takes.
    """
    settings = run.settings
    check_max_tokens(run.system.model, settings.max_tokens)
    folders = [Path(folder) for folder in run.data]
    stream, removed = build_stream(run)
    layout, cost_model = _layout(run), CostModel(per_medium={})
    lengths = None
    if not isinstance(settings, InitStage):
        counter = sample_tokenizer(run, tokenizer)
        kinds = settings.kinds(run.system.model)
        lengths = read_lengths(folders, counter, kinds, fallback=Path(run.output))
        if len(lengths.skip_reasons) == len(lengths):
            _, first = min(lengths.skip_reasons.items())
            raise UserError(f"--data: all {len(lengths)} samples are unusable; first: {first}")
        cost_model = (
            _cost_model(run)
            if isinstance(layout, PackedLayout)
            else CostModel(per_medium=dict.fromkeys(kinds, 0))
        )
    return BatchSampler(
        stream=stream,
        removed=removed,
        global_batch=settings.global_batch,
        layout=layout,
        lengths=lengths,
        cost_model=cost_model,
    )


def sample_tokenizer(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> AnyTokenizer:
    """Return the tokenizer of a run's samples."""
    settings = run.settings
    outputs = settings.output_branches(run.system.model)
    one = SampleTokenizer(
        run.system.model,
        tokenizer,
        prompt=settings.prompt,
        max_tokens=settings.max_tokens,
        outputs=outputs,
    )
    if not isinstance(settings, RlhfStage):
        return one
    if isinstance(settings.objective, Grpo):
        return RolloutTokenizer(one, settings.objective, outputs)
    return PreferenceTokenizer(one, settings.objective)


def _layout(run: RunConfig) -> Layout:
    """Return the layout; the sequences of a preference count as one sample of their length."""
    settings = run.settings
    if packs(run.system.model, settings):
        sequences = settings.sequences if isinstance(settings, RlhfStage) else 1
        return PackedLayout(
            max_tokens=settings.micro_batch * settings.max_tokens * sequences,
            max_media=settings.micro_batch * settings.pack_media,
        )
    compares_samples = isinstance(settings, InitStage)
    return PaddedLayout(
        max_samples=settings.micro_batch, order="position" if compares_samples else "length"
    )


def _cost_model(run: RunConfig) -> CostModel:
    """Return the costs in FLOPs on the device, including recomputation."""
    costs = stage_costs(run.system.model, run.settings)
    return CostModel(
        per_token=costs.position.device,
        per_target=costs.target.device,
        per_pair=costs.pair.device,
        per_medium={
            kind: costs.medium(kind).device for kind in run.settings.kinds(run.system.model)
        },
    )
