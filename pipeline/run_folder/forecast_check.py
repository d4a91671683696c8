"""Forecast against actual: what a run was predicted to need, and what it needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from deepspeed.accelerator import get_accelerator

from model.spec.system import InitStage
from pipeline.config.run_config import RunConfig
from pipeline.forecast.forecast import Forecast, make_forecast, typical_product
from pipeline.forecast.peak_flops import of_this_device
from pipeline.forecast.plan import Plan, plan, sample_length
from pipeline.forecast.workload import Workload, WorkTotals
from pipeline.run_folder.metrics_writer import read_metrics, write_forecast

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity, forecast and actual."""

    quantity: str
    forecast: float
    actual: float | None
    unit: str


def compare_with_forecast(
    run: RunConfig, world: int, totals: WorkTotals, *, memory_before: int
) -> None:
    """Compare a run with its forecast and write both down for the report; on rank 0 alone.

    The forecast is for the samples that the run has processed, so the comparison tests the cost
    model and not a guess of the samples' lengths.

    Args:
        run: the run.
        world: the number of ranks.
        totals: the work of all ranks since this process started; without any, nothing is compared.
        memory_before: bytes of this process before the model was built.
    """
    if not totals.samples or isinstance(run.settings, InitStage):
        return  # nothing was trained, or modules that `plan` does not cover
    system, settings = run.system, run.settings
    tokens = sample_length(system, settings, totals.max_positions)
    targets = tokens * totals.targets / totals.positions
    on_cpu = get_accelerator().device_name() == "cpu"
    with_features = run.feature_cache is not None
    planned = plan(
        system,
        run.stage,
        world,
        tokens=tokens,
        targets=targets,
        on_cpu=on_cpu,
        with_features=with_features,
    )
    peak = of_this_device(settings.precision, typical_product(system.model, settings), measure=True)
    assert peak is not None
    workload = Workload(
        positions=totals.positions / totals.samples,
        targets=totals.targets / totals.samples,
        pairs=totals.pairs / totals.samples,
        media={kind: count / totals.samples for kind, count in totals.media.items()},
    )
    forecast = make_forecast(
        system, run.stage, planned, peak, workload, with_features=with_features
    )
    rows = _compare(Path(run.output), planned, forecast, totals, memory_before)
    notes = [
        f"Time: the FLOPs of the processed samples at {peak}. Waiting for data and communication "
        "between ranks are not part of the forecast.",
        "Memory: the sum of its parts, each at its own peak, for the largest micro-batch of the "
        f"run ({totals.max_positions:,.0f} positions). {_memory_note()}",
    ]
    write_forecast(Path(run.output), [vars(row) for row in rows], notes)


def _compare(
    folder: Path, planned: Plan, forecast: Forecast, totals: WorkTotals, memory_before: int
) -> list[Comparison]:
    metrics = read_metrics(folder)
    compute = [step["step_seconds"] * (1 - step["data_wait_share"]) for step in metrics]
    on_cpu = get_accelerator().device_name() == "cpu"
    return [
        Comparison(
            quantity="compute time per step",
            forecast=forecast.step_seconds,
            actual=median(compute),
            unit="s",
        ),
        Comparison(
            quantity="memory per rank",
            forecast=planned.total_gpu_bytes / _MIB,
            actual=(totals.memory - (memory_before if on_cpu else 0)) / _MIB,
            unit="MiB",
        ),
        Comparison(
            quantity="checkpoint size",
            forecast=sum(forecast.checkpoint_bytes.values()) / _MIB,
            actual=_newest_checkpoint(folder),
            unit="MiB",
        ),
    ]


def _newest_checkpoint(folder: Path) -> float | None:
    checkpoints = sorted(path for path in folder.glob("checkpoints/step-*") if path.suffix == "")
    if not checkpoints:
        return None
    return sum(path.stat().st_size for path in checkpoints[-1].rglob("*") if path.is_file()) / _MIB


def _memory_note() -> str:
    if get_accelerator().device_name() != "cpu":
        return "Actual: the peak of PyTorch's allocator."
    return "Actual: the peak of the process, less what it had before the model was built."
