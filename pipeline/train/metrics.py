"""A step's figures by source and by rank, gathered beside the step: no pass more, no gradient less.

Shapes: s sources, o targets of a micro-batch, b rows, t positions, n samples, r ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from model.batch import Batch
from pipeline.data.loader import MicroBatch
from pipeline.distributed import peak_memory
from pipeline.forecast.flops import UnitCosts, Work
from pipeline.forecast.workload import WorkTotals
from pipeline.train.losses import Loss

BY_SOURCE = "text"
"""The loss that is told by source: the one with a summand for each target of the batch."""


def samples_bt(batch: Batch) -> Tensor:
    """Return the number (b, t) of the sample that each position of a micro-batch belongs to.

    Rows are samples, or hold several whose positions begin anew.
    """
    if batch.positions_bt is not None:
        return (batch.positions_bt == 0).flatten().cumsum(0).view_as(batch.positions_bt) - 1
    rows = len(batch.ids_bt)
    return torch.arange(rows)[:, None].expand(batch.ids_bt.shape)


def samples_o(batch: Batch) -> Tensor:
    """Return the number (o,) of the sample of each target, in the order of `Batch.target_mask`."""
    if batch.decoder_bs is not None:
        owner = torch.arange(len(batch.ids_bt))[:, None].expand(batch.decoder_bs.shape)
        return owner[batch.target_mask]
    return samples_bt(batch)[:, 1:][batch.target_mask]


class MetricsAccumulator:
    """Counts what the passes of a step hold, and tells it of all ranks at the step's end.

    Args:
        sources: names of the data's sources; samples bring their numbers.
        kinds: of media in the stage (`Stage.kinds`).
        costs: what a unit of the stage's work costs; None where that is not known.
        peak: FLOPs a second of a rank's device, as published; None where it is not.
    """

    def __init__(
        self,
        sources: Sequence[str],
        kinds: Sequence[str],
        costs: UnitCosts | None,
        peak: float | None,
    ) -> None:
        self._sources, self._kinds = tuple(sources), tuple(kinds)
        self._costs, self._peak = costs, peak
        none = dict.fromkeys(kinds, 0.0)
        self.totals = WorkTotals(media=none, encoded=none)
        self._begin()

    def _begin(self) -> None:
        device = get_accelerator().current_device_name()
        self._losses_s = torch.zeros(len(self._sources), dtype=torch.float64, device=device)
        # MultimodalDataset, positions and targets of each source.
        self._counts_s3 = torch.zeros(len(self._sources), 3, dtype=torch.float64)
        self._pairs = 0.0
        self._media = dict.fromkeys(self._kinds, 0.0)
        self._encoded = dict.fromkeys(self._kinds, 0.0)
        self._places = 0.0

    def add(self, item: MicroBatch, losses: Mapping[str, Loss]) -> None:
        """Count one pass of this rank; waits for no device."""
        batch = item.batch
        source_n = torch.tensor(item.sources, dtype=torch.long)
        count = len(item.sources)
        ones_bt = batch.attention_bt.double()
        # What lies past the samples are fillers.
        length_n = _sum_by(samples_bt(batch).flatten(), ones_bt.flatten(), count)
        owner_o = samples_o(batch)
        targets_n = _sum_by(owner_o, torch.ones(len(owner_o), dtype=torch.float64), count)
        per_sample_n3 = torch.stack([torch.ones_like(length_n), length_n, targets_n], dim=1)
        self._counts_s3.index_add_(0, source_n, per_sample_n3)
        for length, targets in zip(length_n.tolist(), targets_n.tolist(), strict=True):
            self._pairs += self._costs.pairs(length, targets) if self._costs else 0.0
        for kind in self._kinds:
            media, encoded = batch.count(kind)
            self._media[kind] += media
            self._encoded[kind] += encoded
        self._places = max(self._places, float(batch.ids_bt.numel()))
        loss = losses.get(BY_SOURCE)
        if loss is not None and loss.each_m is not None:
            source_o = source_n[owner_o].to(loss.each_m.device)
            self._losses_s.index_add_(0, source_o, loss.each_m.double())

    def finish(self, seconds: float) -> dict[str, object]:
        """Return the step's figures over all ranks, and begin the next one; a collective."""
        own = torch.cat(
            [
                self._losses_s.cpu(),
                self._counts_s3.flatten(),
                torch.tensor([self._media[kind] for kind in self._kinds], dtype=torch.float64),
                torch.tensor([self._encoded[kind] for kind in self._kinds], dtype=torch.float64),
                torch.tensor([self._pairs, self._places, peak_memory()], dtype=torch.float64),
            ]
        ).to(self._losses_s.device)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        ranks = [_Rank.read(row, len(self._sources), self._kinds) for row in everyone]
        self._begin()
        self.totals = self._added(ranks)
        figures: dict[str, object] = {"sources": self._by_source(ranks)}
        figures["memory_bytes"] = [int(rank.memory) for rank in ranks]
        if self._costs is not None:
            figures |= _compared(ranks, self._costs, self._peak, seconds)
        return figures

    def _by_source(self, ranks: Sequence[_Rank]) -> dict[str, dict[str, float | int | None]]:
        losses = torch.stack([rank.losses_s for rank in ranks]).sum(0).tolist()
        counts = torch.stack([rank.counts_s3 for rank in ranks]).sum(0).tolist()
        return {
            name: {
                "samples": int(samples),
                "tokens": int(positions),
                "targets": int(targets),
                "loss": loss / targets if targets and loss else None,
            }
            for name, loss, (samples, positions, targets) in zip(
                self._sources, losses, counts, strict=True
            )
            if samples
        }

    def _added(self, ranks: Sequence[_Rank]) -> WorkTotals:
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
            encoded={
                kind: old.encoded[kind] + sum(rank.encoded[kind] for rank in ranks)
                for kind in self._kinds
            },
            places=max(old.places, *(rank.places for rank in ranks)),
            memory=max(old.memory, *(rank.memory for rank in ranks)),
        )


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """One rank's step."""

    losses_s: Tensor
    counts_s3: Tensor
    media: Mapping[str, float]
    encoded: Mapping[str, float]
    pairs: float
    places: float
    memory: float

    @classmethod
    def read(cls, row: Tensor, sources: int, kinds: Sequence[str]) -> _Rank:
        """Read what `MetricsAccumulator.finish` has sent."""
        sizes = [sources, 3 * sources, len(kinds), len(kinds), 3]
        losses_s, counts, media, encoded, rest = row.cpu().split(sizes)
        pairs, places, memory = rest.tolist()
        return cls(
            losses_s=losses_s,
            counts_s3=counts.view(sources, 3),
            media=dict(zip(kinds, media.tolist(), strict=True)),
            encoded=dict(zip(kinds, encoded.tolist(), strict=True)),
            pairs=pairs,
            places=places,
            memory=memory,
        )


def _compared(
    ranks: Sequence[_Rank], costs: UnitCosts, peak: float | None, seconds: float
) -> dict[str, object]:
    """Return how uneven the ranks' work was: the busiest one's FLOPs, by the mean rank's."""
    parts: dict[str, list[Work]] = {"encoders": [], "backbone": []}
    for rank in ranks:
        _, positions, targets = rank.counts_s3.sum(0).tolist()
        before = [costs.projectors[kind] * count for kind, count in rank.media.items()]
        before += [costs.encoders[kind] * count for kind, count in rank.encoded.items()]
        parts["encoders"].append(sum(before, Work()))
        parts["backbone"].append(
            costs.position * positions + costs.target * targets + costs.pair * rank.pairs
        )
    means = {name: sum(w.device for w in works) / len(ranks) for name, works in parts.items()}
    figures: dict[str, object] = {
        "imbalance": {
            name: max(work.device for work in works) / means[name]
            for name, works in parts.items()
            if means[name]
        }
    }
    if peak is not None:
        done = sum(work.model for works in parts.values() for work in works)
        figures["mfu"] = done / (seconds * peak * len(ranks))
    return figures


def source_names(folders: Sequence[str]) -> list[str]:
    """Return a name for each data folder: as many of its last parts as tell it from the others."""
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {folder}" for number, folder in enumerate(folders)]


def _sum_by(owner_x: Tensor, values_x: Tensor, count: int) -> Tensor:
    """Return the sums (n,) of values by owner; those past `count` are left out."""
    own = owner_x < count
    return torch.zeros(count, dtype=torch.float64).index_add_(0, owner_x[own], values_x[own])
