"""Metrics of a step, by source and by rank, from what the step computes anyway.

Shapes: s sources, o targets of a micro-batch, b rows, t positions, n samples, r ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from model.batch import Batch
from pipeline.data.loader import MicroBatch
from pipeline.distributed import peak_memory
from pipeline.forecast.flops import UnitCosts, Work
from pipeline.forecast.workload import WorkTotals
from pipeline.train.loss_term import LossSum

BY_SOURCE = "text"
"""The loss that is reported by source: the one with a summand per target of the batch."""


@dataclass(frozen=True, kw_only=True)
class SourceMetrics:
    """A data folder's part of a step.

    Args:
        samples, tokens, targets: over all ranks.
        loss: mean text loss per target; None without text targets.
    """

    samples: int
    tokens: int
    targets: int
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class WorkMetrics:
    """What a step has processed, over all ranks.

    Args:
        sources: by name of the data folder.
        memory_bytes: peak memory of each rank.
        imbalance: FLOPs of the busiest rank divided by the mean of all ranks, of the encoders and
            the backbone; None where the costs are unknown.
        mfu: model FLOPs utilization; None without a published peak.
    """

    sources: Mapping[str, SourceMetrics]
    memory_bytes: Sequence[int]
    imbalance: Mapping[str, float] | None = None
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One object of metrics.jsonl.

    Args:
        step, samples, tokens: of the run up to and including this step.
        skipped_steps: of these, those that changed no weight, see `TrainerState`.
        loss: the weighted sum of `losses`.
        losses: by name, the mean over the global batch.
        lr: the largest learning rate of the parameter groups.
        lr_by_group: the learning rate of each part that has one of its own, by its pattern.
        grad_norm: before clipping.
        step_seconds: wall time.
        tokens_per_second: over all ranks, without padding.
        padding_share: of all positions.
        data_wait_share: of `step_seconds`, on rank 0.
        work: what was processed.
        phase_seconds: time per phase, on rank 0.
    """

    step: int
    samples: int
    tokens: int
    skipped_steps: int
    loss: float
    losses: Mapping[str, float]
    lr: float
    lr_by_group: Mapping[str, float]
    grad_norm: float
    step_seconds: float
    tokens_per_second: float
    padding_share: float
    data_wait_share: float
    work: WorkMetrics
    phase_seconds: Mapping[str, float]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers: the same on every rank."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def to_json(self) -> dict[str, object]:
        """Return the object, with null in place of numbers that are not finite.

        The fields of `work` are keys of their own, None is left out of them; `lr_by_group` is left
        out where all parameters have the same rate.
        """
        fields = asdict(self)
        if len(self.lr_by_group) < 2:
            del fields["lr_by_group"]
        work, phase_seconds = fields.pop("work"), fields.pop("phase_seconds")
        fields |= {name: value for name, value in work.items() if value is not None}
        valid: dict[str, object] = finite_or_none(fields | {"phase_seconds": phase_seconds})
        return valid


def finite_or_none(value: Any) -> Any:  # noqa: ANN401 -- any JSON
    """Return a JSON value with None for every number that JSON does not have: NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def samples_bt(batch: Batch) -> Tensor:
    """Return the index (b, t) of the sample that each position of a micro-batch belongs to.

    A row is a sample or, packed, several samples whose positions each start at 0.
    """
    if batch.sequences is not None:
        return batch.sequences.samples_q[batch.sequences_bt]
    if batch.positions_bt is not None:
        return batch.sequences_bt
    rows = len(batch.ids_bt)
    return torch.arange(rows)[:, None].expand(batch.ids_bt.shape)


def samples_o(batch: Batch) -> Tensor:
    """Return the index (o,) of the sample of each target, in the order of `Batch.target_mask`."""
    if batch.decoder_bs is not None:
        owner = torch.arange(len(batch.ids_bt))[:, None].expand(batch.decoder_bs.shape)
        return owner[batch.target_mask]
    return samples_bt(batch)[:, 1:][batch.target_mask]


class MetricsAccumulator:
    """Accumulates the losses and the work of a step's micro-batches, and gathers them after it.

    Args:
        losses: names of the losses.
        sources: names of the data folders, in the order of `MicroBatch.sources`.
        kinds: of media in the stage (`Stage.kinds`).
        costs: FLOPs of each unit of the stage's work; None where they are unknown.
        peak: published FLOP/s of a rank's device; None without one.
    """

    def __init__(
        self,
        losses: Sequence[str],
        sources: Sequence[str],
        kinds: Sequence[str],
        costs: UnitCosts | None,
        peak: float | None,
    ) -> None:
        self._losses = tuple(losses)
        self._sources, self._kinds = tuple(sources), tuple(kinds)
        self._costs, self._peak = costs, peak
        self.totals = WorkTotals(media=dict.fromkeys(kinds, 0.0))
        self._ranks: Sequence[_RankWork] = ()
        self._reset()

    def _reset(self) -> None:
        device = get_accelerator().current_device_name()
        # The sum and the count of each loss.
        self._losses_n2 = torch.zeros(len(self._losses), 2, dtype=torch.float64, device=device)
        self._losses_s = torch.zeros(len(self._sources), dtype=torch.float64, device=device)
        # Samples, positions and targets of each source.
        self._counts_s3 = torch.zeros(len(self._sources), 3, dtype=torch.float64)
        self._pairs = 0.0
        self._media = dict.fromkeys(self._kinds, 0.0)
        self._max_positions = 0.0

    def add(self, item: MicroBatch, losses: Mapping[str, LossSum]) -> None:
        """Add a micro-batch of this rank; does not synchronize with the device."""
        batch = item.batch
        source_n = torch.tensor(item.sources, dtype=torch.long)
        count = len(item.sources)
        ones_bt = batch.attention_bt.double()
        # Rows after the last sample are dummies.
        length_n = sum_by(samples_bt(batch).flatten(), ones_bt.flatten(), count)
        owner_o = samples_o(batch)
        targets_n = sum_by(owner_o, torch.ones(len(owner_o), dtype=torch.float64), count)
        per_sample_n3 = torch.stack([torch.ones_like(length_n), length_n, targets_n], dim=1)
        self._counts_s3.index_add_(0, source_n, per_sample_n3)
        for length, targets in zip(length_n.tolist(), targets_n.tolist(), strict=True):
            self._pairs += self._costs.pairs(length, targets) if self._costs else 0.0
        for kind in self._kinds:
            self._media[kind] += batch.count(kind)
        for index, name in enumerate(self._losses):
            self._losses_n2[index, 0] += losses[name].total.detach().double()
            self._losses_n2[index, 1] += losses[name].count
        self._max_positions = max(self._max_positions, float(batch.ids_bt.numel()))
        loss = losses.get(BY_SOURCE)
        if loss is not None and loss.per_target_m is not None:
            source_o = source_n[owner_o].to(loss.per_target_m.device)
            self._losses_s.index_add_(0, source_o, loss.per_target_m.double())

    def gather(self) -> dict[str, tuple[float, float]]:
        """Gather the step from all ranks, and reset for the next; the one collective after a step.

        Returns:
            Sum and count of each loss over the global batch.
        """
        own = torch.cat(
            [
                self._losses_n2.flatten().cpu(),
                self._losses_s.cpu(),
                self._counts_s3.flatten(),
                torch.tensor([self._media[kind] for kind in self._kinds], dtype=torch.float64),
                torch.tensor(
                    [self._pairs, self._max_positions, peak_memory()], dtype=torch.float64
                ),
            ]
        ).to(self._losses_s.device)
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, own)
        split = [
            row.cpu().split([2 * len(self._losses), row.numel() - 2 * len(self._losses)])
            for row in gathered
        ]
        losses_n2 = torch.stack([losses for losses, _ in split]).sum(0).view(-1, 2)
        sources = len(self._sources)
        self._ranks = [_RankWork.decode(work, sources, self._kinds) for _, work in split]
        self.totals = self._add_to_totals(self._ranks)
        self._reset()
        pairs = ((total, count) for total, count in losses_n2.tolist())
        return dict(zip(self._losses, pairs, strict=True))

    def metrics(self, seconds: float) -> WorkMetrics:
        """Return the work of the step that was gathered last and took so many seconds."""
        ranks, costs, peak = self._ranks, self._costs, self._peak
        return WorkMetrics(
            sources=self._by_source(ranks),
            memory_bytes=[int(rank.memory) for rank in ranks],
            imbalance=_imbalance(ranks, costs) if costs is not None else None,
            mfu=_mfu(ranks, costs, peak, seconds) if costs is not None and peak else None,
        )

    def _by_source(self, ranks: Sequence[_RankWork]) -> dict[str, SourceMetrics]:
        losses = torch.stack([rank.losses_s for rank in ranks]).sum(0).tolist()
        counts = torch.stack([rank.counts_s3 for rank in ranks]).sum(0).tolist()
        return {
            name: SourceMetrics(
                samples=int(samples),
                tokens=int(positions),
                targets=int(targets),
                loss=loss / targets if targets and loss else None,
            )
            for name, loss, (samples, positions, targets) in zip(
                self._sources, losses, counts, strict=True
            )
            if samples
        }

    def _add_to_totals(self, ranks: Sequence[_RankWork]) -> WorkTotals:
        old = self.totals
        samples, positions, targets = torch.stack([r.counts_s3 for r in ranks]).sum((0, 1)).tolist()
        return WorkTotals(
            samples=old.samples + samples,
            positions=old.positions + positions,
            targets=old.targets + targets,
            pairs=old.pairs + sum(rank.pairs for rank in ranks),
            media={
                kind: old.media[kind] + sum(rank.media[kind] for rank in ranks)
                for kind in self._kinds
            },
            max_positions=max(old.max_positions, *(rank.max_positions for rank in ranks)),
            memory=max(old.memory, *(rank.memory for rank in ranks)),
        )


@dataclass(frozen=True, kw_only=True)
class _RankWork:
    """The work of one rank in one step."""

    losses_s: Tensor
    counts_s3: Tensor
    media: Mapping[str, float]
    pairs: float
    max_positions: float
    memory: float

    @classmethod
    def decode(cls, row: Tensor, sources: int, kinds: Sequence[str]) -> _RankWork:
        """Decode what `MetricsAccumulator.gather` gathers behind the losses."""
        sizes = [sources, 3 * sources, len(kinds), 3]
        losses_s, counts, media, rest = row.split(sizes)
        pairs, max_positions, memory = rest.tolist()
        return cls(
            losses_s=losses_s,
            counts_s3=counts.view(sources, 3),
            media=dict(zip(kinds, media.tolist(), strict=True)),
            pairs=pairs,
            max_positions=max_positions,
            memory=memory,
        )

    def flops(self, costs: UnitCosts) -> dict[str, Work]:
        """Return the FLOPs of the encoders (with projectors) and of the backbone."""
        _, positions, targets = self.counts_s3.sum(0).tolist()
        media = [costs.medium(kind) * count for kind, count in self.media.items()]
        return {
            "encoders": sum(media, Work()),
            "backbone": costs.position * positions
            + costs.target * targets
            + costs.pair * self.pairs,
        }


def _imbalance(ranks: Sequence[_RankWork], costs: UnitCosts) -> dict[str, float]:
    flops = [rank.flops(costs) for rank in ranks]
    imbalance = {}
    for name in ("encoders", "backbone"):
        of_ranks = [work[name].device for work in flops]
        mean = sum(of_ranks) / len(of_ranks)
        if mean:
            imbalance[name] = max(of_ranks) / mean
    return imbalance


def _mfu(ranks: Sequence[_RankWork], costs: UnitCosts, peak: float, seconds: float) -> float:
    flops = sum(work.model for rank in ranks for work in rank.flops(costs).values())
    return flops / (seconds * peak * len(ranks))


def source_names(folders: Sequence[str]) -> list[str]:
    """Return a name for each data folder: the shortest path suffixes that are all different."""
    paths = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {folder}" for number, folder in enumerate(folders)]


def sum_by(owner_x: Tensor, values_x: Tensor, count: int) -> Tensor:
    """Return the sums (n,) of values by owner; owners from `count` on are left out."""
    valid = owner_x < count
    return torch.zeros(count, dtype=torch.float64).index_add_(0, owner_x[valid], values_x[valid])
