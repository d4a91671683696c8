"""`report.html` of a run: what it has learnt, how fast, and what it was predicted to take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from pipeline.run_folder.charts import line_chart
from pipeline.run_folder.page import Cell, Charts, Section, Table, Text, write_report
from pipeline.run_folder.records import read_bad, read_features, read_forecast_check, read_metrics

Entry = Mapping[str, object]
_BAD_SHOWN = 20


def run_report(run: Path) -> Path:
    """Write `report.html` of a training run from its records; return its path.

    Raises:
        UserError: the folder holds no figures.
    """
    metrics = read_metrics(run)
    if not metrics:
        raise UserError(f"{run}/metrics.jsonl: no figures; is this a run folder?")
    path = run / "report.html"
    sections: list[Section] = [
        Table(heading="Run", columns=("", ""), rows=_summary(metrics)),
        _losses(metrics),
        _speed(metrics),
        *_hindsight(run),
        *_features(run),
        *_sources(metrics),
        *_bad(run),
    ]
    write_report(path, title=f"Run {run.resolve().name}", sections=sections)
    return path


def loss_chart(title: str, metrics: Sequence[Entry]) -> str:
    """Draw each of a run's losses over its steps, smoothed over the raw values."""
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
        for name, figures in _mapping(entry, "sources").items():
            points = sources.setdefault(name, [])
            points.append((_number(entry["step"]), _number(figures["loss"])))
    if sources:
        charts.append(line_chart("Loss by source", sources, y_label="nats per target", smooth=True))
    charts.append(_drawn(metrics, "Learning rate", {"lr": _plain("lr")}, smooth=False))
    charts.append(
        _drawn(metrics, "Gradient norm before clipping", {"grad_norm": _plain("grad_norm")})
    )
    return Charts(heading="Learning", charts=charts)


def _speed(metrics: Sequence[Entry]) -> Charts:
    """Draw how fast a run goes, and what keeps it; what no step has recorded has no chart."""
    shares = {"padding": _plain("padding_share"), "waiting for data": _plain("data_wait_share")}
    charts = [
        _drawn(metrics, "Tokens per second, all ranks", {"tokens": _plain("tokens_per_second")}),
        _drawn(metrics, "Shares of the positions, and of the time", shares),
    ]
    if any("memory_bytes" in entry for entry in metrics):
        ranks = {"highest": _of_ranks(max), "lowest": _of_ranks(min)}
        charts.append(_drawn(metrics, "Peak memory of a rank", ranks, y_label="GiB", smooth=False))
    if any("imbalance" in entry for entry in metrics):
        parts = {name: _part("imbalance", name) for name in ("encoders", "backbone")}
        title = "The busiest rank's work, by the mean rank's"
        charts.append(_drawn(metrics, title, parts))
    phases = dict.fromkeys(name for entry in metrics for name in _mapping(entry, "phase_seconds"))
    if phases:
        seconds = {name: _part("phase_seconds", name) for name in phases}
        charts.append(_drawn(metrics, "What a step's time goes into, rank 0", seconds, y_label="s"))
    if any("mfu" in entry for entry in metrics):
        charts.append(_drawn(metrics, "Model FLOPs utilisation", {"mfu": _plain("mfu")}))
    return Charts(heading="Speed and memory", charts=charts)


Figure = Callable[[Entry], float]


def _drawn(
    metrics: Sequence[Entry],
    title: str,
    figures: Mapping[str, Figure],
    *,
    y_label: str = "",
    smooth: bool = True,
) -> str:
    series = {
        name: [(_number(entry["step"]), figure(entry)) for entry in metrics]
        for name, figure in figures.items()
    }
    return line_chart(title, series, y_label=y_label, smooth=smooth, from_zero=True)


def _plain(key: str) -> Figure:
    return lambda entry: _number(entry.get(key))


def _of_ranks(choose: Callable[[Sequence[float]], float]) -> Figure:
    def figure(entry: Entry) -> float:
        ranks = entry.get("memory_bytes")
        return choose(ranks) / 2**30 if isinstance(ranks, list) and ranks else math.nan

    return figure


def _part(key: str, name: str) -> Figure:
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


def _hindsight(run: Path) -> list[Section]:
    found = read_forecast_check(run)
    if found is None:
        return []
    rows = [(row["what"], row["predicted"], row["measured"], row["unit"]) for row in found["rows"]]
    table = Table(
        heading="Predicted and measured",
        columns=("", "predicted", "measured", "unit"),
        rows=rows,
    )
    return [table, Text(heading="How that was predicted", paragraphs=found["notes"])]


def _features(run: Path) -> list[Section]:
    found = read_features(run)
    if not found:
        return []
    rows = [(kind, str(verdict["reason"])) for kind, verdict in found.items()]
    return [Table(heading="Feature cache", columns=("media", ""), rows=rows)]


def _sources(metrics: Sequence[Entry]) -> list[Section]:
    totals: dict[str, Counter[str]] = {}
    last: dict[str, float] = {}
    for entry in metrics:
        for name, figures in _mapping(entry, "sources").items():
            counts = totals.setdefault(name, Counter())
            counts.update({key: figures[key] for key in ("samples", "tokens")})
            if figures["loss"] is not None:
                last[name] = figures["loss"]
    if not totals:
        return []
    everything = sum(counts["tokens"] for counts in totals.values())
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            counts["samples"],
            counts["tokens"],
            counts["tokens"] / everything if everything else None,
            last.get(name),
        )
        for name, counts in totals.items()
    ]
    columns = ("source", "samples", "tokens", "share of the tokens", "last loss")
    return [Table(heading="Sources", columns=columns, rows=rows)]


def _bad(run: Path) -> list[Section]:
    bad = read_bad(run)
    if not bad:
        return []
    rows: list[tuple[Cell, ...]] = [
        (str(entry["step"]), str(entry["id"]), str(entry["reason"])) for entry in bad[-_BAD_SHOWN:]
    ]
    heading = f"Samples that could not be used: {len(bad):,}"
    if len(bad) > _BAD_SHOWN:
        heading += f", of which the last {_BAD_SHOWN}"
    return [Table(heading=heading, columns=("step", "sample", "why"), rows=rows)]


def _mapping(entry: Entry, key: str) -> Mapping[str, Any]:
    found = entry.get(key) or {}
    assert isinstance(found, Mapping)
    return found


def _number(value: object) -> float:
    """Return a figure of `metrics.jsonl`; what is none leaves a gap in a chart."""
    return float(value) if isinstance(value, int | float) else math.nan
