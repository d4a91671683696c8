"""The workload of real data: how long its samples are, before anything is trained.

From the texts and the media's columns alone; no medium is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etl.cli import UserError
from model.build import build_tokenizer
from pipeline.config.run_config import RunConfig
from pipeline.data.packing import PackedLayout
from pipeline.data.sampler import BatchSampler, build_sampler
from pipeline.forecast.forecast import stage_costs
from pipeline.forecast.workload import Workload

_STEPS = 64
"""Steps whose micro-batches are laid out; the largest of them counts."""
_SAMPLES = 65_536
"""Samples of the stream over which is averaged."""


@dataclass(frozen=True, kw_only=True)
class DataWorkload:
    """What data make of a stage.

    Args:
        average: the average sample of the mix.
        positions, targets: of the largest micro-batch, padding included.
    """

    average: Workload
    positions: int
    targets: int


def data_workload(run: RunConfig, ranks: int) -> DataWorkload:
    """Return the workload of a run's data.

    Args:
        run: the configuration; of a stage that reads lengths (`pt`, `sft`).
        ranks: their number.

    Raises:
        UserError, SpecError: a mistake in the data, or no sample of the first ones can be used.
    """
    sampler = build_sampler(run, build_tokenizer(run.system.model, weights=run.weights))
    lengths, costs = sampler.lengths, stage_costs(run.system.model, run.settings)
    assert lengths is not None
    _, rows = sampler.rows(0, _SAMPLES)
    rows = rows[lengths.tokens_n[rows] > 0]  # those that are skipped have none
    if not len(rows):
        raise UserError(f"{', '.join(run.data)}: no sample can be used")
    tokens_n, targets_n = (x[rows].astype(float) for x in (lengths.tokens_n, lengths.targets_n))
    pairs = [costs.pairs(*pair) for pair in zip(tokens_n, targets_n, strict=True)]
    positions, targets = _largest(sampler, ranks)
    return DataWorkload(
        average=Workload(
            positions=float(tokens_n.mean()),
            targets=float(targets_n.mean()),
            pairs=float(np.mean(pairs)),
            media={kind: float(count_n[rows].mean()) for kind, count_n in lengths.media_n.items()},
        ),
        positions=positions,
        targets=targets,
    )


def _largest(sampler: BatchSampler, ranks: int) -> tuple[int, int]:
    """Return the positions and the targets of the largest micro-batches of the first steps."""
    lengths, layout = sampler.lengths, sampler.layout
    assert lengths is not None
    positions, targets = 0, 0
    for step in range(min(sampler.steps, _STEPS)):
        for bins in sampler.step(step, ranks):
            for samples in bins:
                rows = [sample.row for sample in samples]
                tokens_n = lengths.tokens_n[rows]
                if isinstance(layout, PackedLayout):
                    size = int(tokens_n.sum())
                else:
                    size = int(tokens_n.max(initial=0)) * layout.max_samples
                positions = max(positions, size)
                targets = max(targets, int(lengths.targets_n[rows].sum()))
    return positions, targets
