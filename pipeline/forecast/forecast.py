"""What a step will take and a checkpoint will hold, told before anything runs.

A step's time is its FLOPs by a device's rate. Not in it: waiting for data, what ranks send each
other, and saving. That is why a run prints this beside what it measured.
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
from pipeline.forecast.peak_flops import Rate
from pipeline.forecast.plan import Plan
from pipeline.forecast.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is predicted of a stage beside `Plan`.

    Args:
        work: of one sample, by component.
        rate: of one rank's device.
        samples: of one rank and step.
        checkpoint_bytes: by part, of all ranks together.
    """

    work: Mapping[str, Work]
    rate: Rate
    samples: float
    checkpoint_bytes: Mapping[str, int]

    @property
    def sample(self) -> Work:
        """One sample's work, all components together."""
        return sum(self.work.values(), Work())

    @property
    def step_seconds(self) -> float:
        """Seconds that one rank computes in a step."""
        return self.samples * self.sample.device / self.rate.effective

    def to_json(self) -> dict[str, object]:
        """Return what `plan --json` adds: FLOPs, seconds, and bytes."""
        return {
            "flops_per_sample": {
                **{name: work.model for name, work in self.work.items()},
                "total": self.sample.model,
                "recomputed": self.sample.again,
            },
            "flops_per_second": {
                "peak": self.rate.peak,
                "assumed_share": self.rate.assumed,
                "source": self.rate.source,
            },
            "step_seconds": self.step_seconds,
            "checkpoint_bytes": {
                **self.checkpoint_bytes,
                "total": sum(self.checkpoint_bytes.values()),
            },
        }


def make_forecast(
    system: System, stage_name: StageName, planned: Plan, rate: Rate, load: Workload | None = None
) -> Forecast:
    """Predict a stage's step time and checkpoint size.

    Args:
        system: as it was planned.
        stage_name: likewise.
        planned: the stage's plan.
        rate: of one rank's device.
        load: of a sample; by default one of the planned length, one medium of each modality.
    """
    stage = system.stage(stage_name)
    costs = stage_costs(system.model, stage)
    if load is None:
        positions, targets = planned.tokens["total"], planned.tokens["text"]
        load = Workload(
            positions=positions,
            targets=targets,
            pairs=costs.pairs(positions, targets),
            media=dict.fromkeys(stage.kinds(system.model), 1),
        )
    return Forecast(
        work=_by_component(costs, load),
        rate=rate,
        samples=planned.global_batch / planned.gpus,
        checkpoint_bytes=checkpoint_bytes(stage, planned.trainable, planned.gpus),
    )


@functools.lru_cache(maxsize=1)
def stage_costs(model: ModelSpec, stage: Stage) -> UnitCosts:
    """Return what each unit of a stage's work costs; the last answer is kept."""
    built = build_on_meta(model, stage)
    set_trainable(built, stage.trainable)
    return unit_costs(built, stage)


def typical_product(model: ModelSpec, stage: Stage) -> tuple[int, int, int]:
    """Return the shape (m, k, n) of a feed-forward layer's product for a pass of one rank."""
    backbone = model.backbone
    rows = stage.micro_batch * min(stage.max_tokens, 2048)
    return min(rows, 4096), backbone.width, backbone.mlp_width


def _by_component(costs: UnitCosts, load: Workload) -> dict[str, Work]:
    work = {"encoders": Work(), "projectors": Work()}
    for kind, count in load.media.items():
        encoded = count if load.encoded is None else load.encoded[kind]
        work["encoders"] += costs.encoders[kind] * encoded
        work["projectors"] += costs.projectors[kind] * count
    work["backbone"] = costs.position * load.positions
    work["attention scores"] = costs.pair * load.pairs
    work["targets"] = costs.target * load.targets
    return work


def checkpoint_bytes(stage: Stage, trainable: int, ranks: int) -> dict[str, int]:
    """Return the bytes of one checkpoint by part; frozen weights are left out.

    Every rank writes its share of a float32 master and Adam's two moments; below ZeRO-3
    DeepSpeed's own file holds the trained weights once more. Not counted: what a checkpoint takes
    however small the model is, about 0.1 MB a rank.
    """
    size = memory.PRECISION[stage.precision]
    zero = memory.Zero.read(ds_config(stage, ranks), size)
    return {
        "trained weights": trainable * size * (1 if zero.stage == 3 else 2),
        "optimizer states": trainable * 3 * memory.FLOAT,
    }


def forecast_table(outlook: Forecast) -> Group:
    """Return the prediction as a table for a terminal."""
    title = f"one step: {outlook.samples:g} samples a rank"
    table = Table("GFLOPs of a sample", "forward", "backward", "again", title=title)
    for name, work in outlook.work.items():
        table.add_row(name, *_giga(work))
    table.add_section()
    table.add_row("total", *_giga(outlook.sample))
    for column in table.columns[1:]:
        column.justify = "right"
    size = sum(outlook.checkpoint_bytes.values())
    return Group(
        table,
        f"{seconds_text(outlook.step_seconds)} a step at {outlook.rate}",
        f"{bytes_text(size)} a checkpoint",
    )


def _giga(work: Work) -> list[str]:
    return [f"{flops / 1e9:,.1f}" for flops in (work.forward, work.backward, work.again)]


def seconds_text(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bytes_text(size: float) -> str:
    """Return a size in words."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1024:.0f} KiB"
