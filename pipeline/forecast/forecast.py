"""Forecast a stage's step time and checkpoint size before anything runs.

A step's time is its FLOPs divided by the device's effective FLOP/s. It does not include waiting for
data, communication between ranks, and saving; a run's report shows forecast against actual.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table

from model.build import build_on_meta
from model.freeze import set_trainable
from model.spec import ModelSpec, Stage, System
from pipeline.config.deepspeed import ds_config
from pipeline.config.run_config import StageName
from pipeline.forecast import memory
from pipeline.forecast.flops import UnitCosts, Work, unit_costs
from pipeline.forecast.peak_flops import PeakFlops
from pipeline.forecast.plan import Plan
from pipeline.forecast.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """FLOPs, step time and checkpoint size of a stage; `Plan` has parameters and memory.

    Args:
        work: FLOPs of one sample, by component.
        peak: of one rank's device.
        samples: per rank and step.
        checkpoint_bytes: by part, over all ranks.
    """

    work: Mapping[str, Work]
    peak: PeakFlops
    samples: float
    checkpoint_bytes: Mapping[str, int]

    @property
    def sample(self) -> Work:
        """FLOPs of one sample, over all components."""
        return sum(self.work.values(), Work())

    @property
    def step_seconds(self) -> float:
        """Compute time of one rank per step."""
        return self.samples * self.sample.device / self.peak.effective

    def to_json(self) -> dict[str, object]:
        """Return the part of `plan --json` with FLOPs, seconds and bytes."""
        return {
            "flops_per_sample": {
                **{name: work.model for name, work in self.work.items()},
                "total": self.sample.model,
                "recomputed": self.sample.recomputed,
            },
            "flops_per_second": {
                "peak": self.peak.peak,
                "assumed_share": self.peak.utilization,
                "source": self.peak.source,
            },
            "step_seconds": self.step_seconds,
            "checkpoint_bytes": {
                **self.checkpoint_bytes,
                "total": sum(self.checkpoint_bytes.values()),
            },
        }


def make_forecast(
    system: System,
    stage_name: StageName,
    planned: Plan,
    peak: PeakFlops,
    workload: Workload | None = None,
    *,
    with_features: bool = False,
) -> Forecast:
    """Forecast a stage's step time and checkpoint size.

    Args:
        system: the preset that was planned.
        stage_name: the stage that was planned.
        planned: its plan.
        peak: of one rank's device.
        workload: the average sample; by default one of the planned length with one medium of each
            kind.
        with_features: whether the features of frozen encoders come from the feature cache.
    """
    stage = system.stage(stage_name)
    costs = stage_costs(system.model, stage)
    if with_features:
        costs = costs.with_features()
    if workload is None:
        positions, targets = planned.tokens["total"], planned.tokens["text"]
        workload = Workload(
            positions=positions,
            targets=targets,
            pairs=costs.pairs(positions, targets),
            media=dict.fromkeys(stage.kinds(system.model), 1),
        )
    return Forecast(
        work=_by_component(costs, workload),
        peak=peak,
        samples=planned.global_batch / planned.gpus,
        checkpoint_bytes=checkpoint_bytes(stage, planned.trainable, planned.gpus),
    )


@functools.lru_cache(maxsize=16)
def stage_costs(model: ModelSpec, stage: Stage) -> UnitCosts:
    """Return the FLOPs of each unit of a stage's work; the last results are cached."""
    built = build_on_meta(model, stage)
    set_trainable(built, stage.trainable)
    return unit_costs(built, stage)


def typical_product(model: ModelSpec, stage: Stage) -> tuple[int, int, int]:
    """Return the shape (m, k, n) of a feed-forward layer's multiplication for a micro-batch."""
    backbone = model.backbone
    rows = stage.micro_batch * min(stage.max_tokens, 2048)
    return min(rows, 4096), backbone.width, backbone.mlp_width


def _by_component(costs: UnitCosts, workload: Workload) -> dict[str, Work]:
    work = {"encoders": Work(), "projectors": Work()}
    for kind, count in workload.media.items():
        work["encoders"] += costs.encoders[kind] * count
        work["projectors"] += costs.projectors[kind] * count
    work["backbone"] = costs.position * workload.positions
    work["attention scores"] = costs.pair * workload.pairs
    work["targets"] = costs.target * workload.targets
    return work


def checkpoint_bytes(stage: Stage, trainable: int, ranks: int) -> dict[str, int]:
    """Return the bytes of one checkpoint by part; frozen weights are not saved.

    Every rank writes its partition of the float32 master weights and of Adam's two moments; below
    ZeRO-3 DeepSpeed's own file has the trained weights once more. Not counted: the fixed overhead
    of about 0.1 MB per rank.
    """
    size = memory.PRECISION[stage.precision]
    zero = memory.Zero.read(ds_config(stage, ranks), size)
    return {
        "trained weights": trainable * size * (1 if zero.stage == 3 else 2),
        "optimizer states": trainable * 3 * memory.FLOAT,
    }


def forecast_table(forecast: Forecast) -> Group:
    """Return the forecast as a table for a terminal."""
    title = f"one step: {forecast.samples:g} samples per rank"
    table = Table("GFLOPs per sample", "forward", "backward", "recomputed", title=title)
    for name, work in forecast.work.items():
        table.add_row(name, *_giga(work))
    table.add_section()
    table.add_row("total", *_giga(forecast.sample))
    for column in table.columns[1:]:
        column.justify = "right"
    size = sum(forecast.checkpoint_bytes.values())
    return Group(
        table,
        f"{seconds_text(forecast.step_seconds)} per step at {forecast.peak}",
        f"{bytes_text(size)} per checkpoint",
    )


def _giga(work: Work) -> list[str]:
    return [f"{flops / 1e9:,.1f}" for flops in (work.forward, work.backward, work.recomputed)]


def seconds_text(seconds: float) -> str:
    """Return a duration with its unit."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bytes_text(size: float) -> str:
    """Return a size with its unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1024:.0f} KiB"
