"""`report.html` of a run: losses, speed, memory, sources, and forecast against actual."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from pipeline.run_folder.charts import line_chart
from pipeline.run_folder.metrics_writer import (
    read_bad_samples,
    read_forecast,
    read_metrics,
)
from pipeline.run_folder.page import Cell, Charts, Section, Table, Text, write_report

Entry = Mapping[str, object]
_BAD_SHOWN = 20


def run_report(run: Path) -> Path:
    """Write the `report.html` of a training run from the files in its folder; return its path.

    Raises:
        UserError: the folder has no metrics.
    """
    metrics = read_metrics(run)
    if not metrics:
        raise UserError(f"{run}/metrics.jsonl: no metrics; want a run folder")
    path = run / "report.html"
    sections: list[Section] = [
        Table(heading="Run", columns=("", ""), rows=_summary(metrics)),
        _losses(metrics),
        _speed(metrics),
        *_forecast(run),
        *_sources(metrics),
        *_bad_samples(run),
    ]
    write_report(path, title=f"Run {run.resolve().name}", sections=sections)
    return path


def loss_chart(title: str, metrics: Sequence[Entry]) -> str:
    """Draw each loss of a run over its steps, raw and smoothed."""
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in metrics:
        losses = entry.get("losses") or {"loss": entry["loss"]}
        assert isinstance(losses, Mapping)
        for name, value in losses.items():
            series.setdefault(name, []).append((_number(entry["step"]), _number(value)))
    return line_chart(title, series, y_label="nats per target", smooth=True)


def _losses(metrics: Sequence[Entry]) -> Charts:
    charts = [loss_chart("Loss", metrics)]
    sources: dict[str, list[tuple[float, float]]] = {}
    for entry in metrics:
        for name, source in _mapping(entry, "sources").items():
            points = sources.setdefault(name, [])
            points.append((_number(entry["step"]), _number(source["loss"])))
    if sources:
        charts.append(line_chart("Loss by source", sources, y_label="nats per target", smooth=True))
    charts.append(_chart(metrics, "Learning rate", {"lr": _plain("lr")}, smooth=False))
    charts.append(
        _chart(metrics, "Gradient norm before clipping", {"grad_norm": _plain("grad_norm")})
    )
    return Charts(heading="Training", charts=charts)


def _speed(metrics: Sequence[Entry]) -> Charts:
    """Draw speed and memory; metrics that no step has recorded get no chart."""
    shares = {"padding": _plain("padding_share"), "waiting for data": _plain("data_wait_share")}
    charts = [
        _chart(metrics, "Tokens per second, all ranks", {"tokens": _plain("tokens_per_second")}),
        _chart(metrics, "Padding share of positions, waiting share of time", shares),
    ]
    if any("memory_bytes" in entry for entry in metrics):
        ranks = {"highest": _of_ranks(max), "lowest": _of_ranks(min)}
        charts.append(_chart(metrics, "Peak memory of a rank", ranks, y_label="GiB", smooth=False))
    if any("imbalance" in entry for entry in metrics):
        components = {name: _nested("imbalance", name) for name in ("encoders", "backbone")}
        title = "Load imbalance: FLOPs of the busiest rank / mean of all ranks"
        charts.append(_chart(metrics, title, components))
    phases = dict.fromkeys(name for entry in metrics for name in _mapping(entry, "phase_seconds"))
    if phases:
        seconds = {name: _nested("phase_seconds", name) for name in phases}
        charts.append(_chart(metrics, "Time per phase of a step, rank 0", seconds, y_label="s"))
    if any("mfu" in entry for entry in metrics):
        charts.append(_chart(metrics, "Model FLOPs utilisation", {"mfu": _plain("mfu")}))
    return Charts(heading="Speed and memory", charts=charts)


Value = Callable[[Entry], float]
"""Reads one metric of a step."""


def _chart(
    metrics: Sequence[Entry],
    title: str,
    values: Mapping[str, Value],
    *,
    y_label: str = "",
    smooth: bool = True,
) -> str:
    series = {
        name: [(_number(entry["step"]), value(entry)) for entry in metrics]
        for name, value in values.items()
    }
    return line_chart(title, series, y_label=y_label, smooth=smooth, from_zero=True)


def _plain(key: str) -> Value:
    return lambda entry: _number(entry.get(key))


def _of_ranks(choose: Callable[[Sequence[float]], float]) -> Value:
    def value(entry: Entry) -> float:
        ranks = entry.get("memory_bytes")
        return choose(ranks) / 2**30 if isinstance(ranks, list) and ranks else math.nan

    return value


def _nested(key: str, name: str) -> Value:
    return lambda entry: _number(_mapping(entry, key).get(name))


def _summary(metrics: Sequence[Entry]) -> list[tuple[Cell, Cell]]:
    first, last = metrics[0], metrics[-1]
    seconds = sum(_number(entry["step_seconds"]) for entry in metrics)
    tokens = sum(_number(e["tokens_per_second"]) * _number(e["step_seconds"]) for e in metrics)
    return [
        ("steps", int(_number(last["step"]))),
        ("samples", int(_number(last["samples"]))),
        ("tokens", int(_number(last["tokens"]))),
        ("first loss", _number(first["loss"])),
        ("last loss", _number(last["loss"])),
        ("seconds in steps", seconds),
        ("tokens per second", tokens / seconds if seconds else None),
    ]


def _forecast(run: Path) -> list[Section]:
    content = read_forecast(run)
    if content is None:
        return []
    columns = ("quantity", "forecast", "actual", "unit")
    table = Table(
        heading="Forecast against actual",
        columns=("", *columns[1:]),
        rows=[tuple(row[column] for column in columns) for row in content["rows"]],
    )
    return [table, Text(heading="How the forecast is made", paragraphs=content["notes"])]


def _sources(metrics: Sequence[Entry]) -> list[Section]:
    totals: dict[str, Counter[str]] = {}
    last: dict[str, float] = {}
    for entry in metrics:
        for name, source in _mapping(entry, "sources").items():
            counts = totals.setdefault(name, Counter())
            counts.update({key: source[key] for key in ("samples", "tokens")})
            if source["loss"] is not None:
                last[name] = source["loss"]
    if not totals:
        return []
    tokens = sum(counts["tokens"] for counts in totals.values())
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            counts["samples"],
            counts["tokens"],
            counts["tokens"] / tokens if tokens else None,
            last.get(name),
        )
        for name, counts in totals.items()
    ]
    columns = ("source", "samples", "tokens", "share of tokens", "last loss")
    return [Table(heading="Sources", columns=columns, rows=rows)]


def _bad_samples(run: Path) -> list[Section]:
    bad = read_bad_samples(run)
    if not bad:
        return []
    rows: list[tuple[Cell, ...]] = [
        (str(entry["step"]), str(entry["id"]), str(entry["reason"])) for entry in bad[-_BAD_SHOWN:]
    ]
    heading = f"Skipped samples: {len(bad):,}"
    if len(bad) > _BAD_SHOWN:
        heading += f" (the last {_BAD_SHOWN} shown)"
    return [Table(heading=heading, columns=("step", "sample", "reason"), rows=rows)]


def _mapping(entry: Entry, key: str) -> Mapping[str, Any]:
    mapping = entry.get(key) or {}
    assert isinstance(mapping, Mapping)
    return mapping


def _number(value: object) -> float:
    """Return a metric as a number; anything else leaves a gap in a chart."""
    return float(value) if isinstance(value, int | float) else math.nan
