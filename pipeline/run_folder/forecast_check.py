"""What a run was predicted to take, beside what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from deepspeed.accelerator import get_accelerator
from rich.console import Console
from rich.table import Table

from model.spec import System
from model.spec.system import InitStage
from pipeline.config.run_config import RunConfig
from pipeline.forecast.forecast import Forecast, make_forecast, typical_product
from pipeline.forecast.peak_flops import of_this_device
from pipeline.forecast.plan import Plan, plan
from pipeline.forecast.workload import Workload, WorkTotals
from pipeline.run_folder.records import read_metrics, write_forecast_check

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure, predicted and measured."""

    what: str
    predicted: float
    measured: float | None
    unit: str


def compare_with_forecast(
    run: RunConfig, world: int, totals: WorkTotals, *, memory_before: int
) -> None:
    """Compare, print, and write it down for the report; for the rank that writes.

    What is predicted is the time and the memory of the samples as they were, so that what is put
    to the test is the reckoning and not a guess of their lengths.

    Args:
        run: the run.
        world: its ranks.
        totals: what this process has seen of all ranks; nothing is compared if that is nothing.
        memory_before: bytes of this process before it built the model.
    """
    if not totals.samples or isinstance(run.settings, InitStage):
        return  # nothing was done, or by modules that `plan` does not know
    system, settings = run.system, run.settings
    planned = plan(system, run.stage, world, tokens=_longest(system, run, totals))
    rate = of_this_device(settings.precision, typical_product(system.model, settings), measure=True)
    assert rate is not None
    load = Workload(
        positions=totals.positions / totals.samples,
        targets=totals.targets / totals.samples,
        pairs=totals.pairs / totals.samples,
        media={kind: count / totals.samples for kind, count in totals.media.items()},
        encoded={kind: count / totals.samples for kind, count in totals.encoded.items()},
    )
    outlook = make_forecast(system, run.stage, planned, rate, load)
    rows = _rows(Path(run.output), planned, outlook, totals, memory_before)
    notes = [
        f"Time: the FLOPs of the samples as they were, at {rate}; neither waiting for data nor "
        "what ranks send each other is predicted.",
        "Memory: the sum of its parts at their own peaks, for a pass of as many positions as the "
        f"largest had ({totals.places:,.0f}). {_memory_note()}",
    ]
    write_forecast_check(Path(run.output), [vars(row) for row in rows], notes)
    console = Console(stderr=True)
    console.print(_table(rows))
    for note in notes:
        console.print(note, highlight=False, style="dim")


def _longest(system: System, run: RunConfig, totals: WorkTotals) -> int:
    """Return the length of a sample at which a full micro-batch is the largest pass there was."""
    least = 1 + sum(slot.tokens for slot in system.model.inputs)
    least += sum(slot.signals for slot in run.settings.output_branches(system.model))
    tokens = round(totals.places / run.settings.micro_batch)
    return min(max(tokens, least), run.settings.max_tokens)


def _rows(
    folder: Path, planned: Plan, outlook: Forecast, totals: WorkTotals, memory_before: int
) -> list[Comparison]:
    metrics = read_metrics(folder)
    computing = [e["step_seconds"] * (1 - e["data_wait_share"]) for e in metrics]
    on_device = get_accelerator().device_name() != "cpu"
    memory = totals.memory if on_device else totals.memory - memory_before
    predicted = planned.total_gpu_bytes
    if not on_device:
        predicted += sum(planned.host_bytes.values())
    return [
        Comparison(
            what="computing of a step",
            predicted=outlook.step_seconds,
            measured=median(computing),
            unit="s",
        ),
        Comparison(
            what="memory of a rank",
            predicted=predicted / _MIB,
            measured=memory / _MIB,
            unit="MiB",
        ),
        Comparison(
            what="a checkpoint",
            predicted=sum(outlook.checkpoint_bytes.values()) / _MIB,
            measured=_newest_checkpoint(folder),
            unit="MiB",
        ),
    ]


def _newest_checkpoint(folder: Path) -> float | None:
    found = sorted(path for path in folder.glob("checkpoints/step-*") if path.suffix == "")
    if not found:
        return None
    return sum(path.stat().st_size for path in found[-1].rglob("*") if path.is_file()) / _MIB


def _memory_note() -> str:
    if get_accelerator().device_name() != "cpu":
        return "Measured: the peak of PyTorch's allocator."
    return "Measured: by how much the process grew from before the model was built to its peak."


def _table(rows: Sequence[Comparison]) -> Table:
    table = Table("", "predicted", "measured", "unit", title="prediction and measurement")
    for row in rows:
        measured = "" if row.measured is None else f"{row.measured:,.4g}"
        table.add_row(row.what, f"{row.predicted:,.4g}", measured, row.unit)
    for column in table.columns[1:3]:
        column.justify = "right"
    return table
