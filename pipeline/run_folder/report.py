"""`report.html` of a run: what it was, skipped samples, losses, speed, and its evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from etl.cli import UserError
from etl.report.charts import bar_chart, line_chart, number
from etl.report.page import Section, write_page
from pipeline.run_folder.description import description
from pipeline.run_folder.evaluation import EVALUATION, evaluation_sections
from pipeline.run_folder.metrics_writer import (
    read_bad_samples,
    read_cut_samples,
    read_forecast,
    read_metrics,
    read_validations,
)

Metrics = Sequence[Mapping[str, Any]]

_NATS = "nats per target"
_TRAINING = {
    "sources": ("Loss by source", _NATS),
    "lr": ("Learning rate", ""),
    "lr_by_group": ("Learning rate by part", ""),
    "grad_norm": ("Gradient norm before clipping", ""),
}
_SPEED = {
    "tokens_per_second": ("Tokens per second, all ranks", ""),
    "phase_seconds": ("Time per phase of a step, rank 0", "seconds"),
    "padding_share": ("Padding share of positions", ""),
    "memory_bytes": ("Peak memory of a rank", "GiB"),
    "imbalance": ("FLOPs of the busiest rank / mean of all ranks", ""),
}
"""Key of `metrics.jsonl` → title and unit of its chart."""
_MEANS = {"mfu": "Model FLOPs utilization", "data_wait_share": "Waiting for data"}
"""Shares of a step that repeat the shape of a chart: their mean is enough."""
_NOT_SMOOTHED = ("lr", "lr_by_group", "memory_bytes")
_BAD_SHOWN = 20
_REASONS_SHOWN = 12


def run_report(run: Path, evaluation: Path | None = None) -> Path:
    """Write the `report.html` of a run from the files in its folder; return its path.

    Args:
        run: the run folder.
        evaluation: the folder of the evaluation at the end of the page, which is then written
            there; by default the run's own.

    Raises:
        UserError: the folder has neither metrics nor an evaluation.
    """
    metrics = read_metrics(run)
    ends_with = evaluation_sections(evaluation or run / EVALUATION)
    if not metrics and not ends_with:
        raise UserError(f"{run}/metrics.jsonl: no metrics; want a run folder")
    sections = [
        *description(run, metrics),
        _bad_samples(run),
        *_cut_samples(run),
        _training(metrics),
        _validation(read_validations(run)),
        _speed(metrics),
        _forecast(run),
        *ends_with,
    ]
    path = (evaluation or run) / "report.html"
    subtitle = str(run.resolve())
    write_page(path, title=f"Run {run.resolve().name}", subtitle=subtitle, sections=sections)
    return path


def loss_chart(title: str, metrics: Metrics) -> Markup:
    """Draw each loss of a run over its steps, raw and smoothed."""
    return line_chart(title, _series(metrics, "losses"), unit=_NATS, smooth=True)


def loss_charts(metrics: Metrics) -> dict[str, Markup]:
    """Draw each loss of a run by itself; by name."""
    return {
        name: line_chart(f"Loss: {name}", {name: points}, unit=_NATS, smooth=True)
        for name, points in _series(metrics, "losses").items()
    }


def _training(metrics: Metrics) -> Section:
    wanted = dict(_TRAINING)
    if len({name for entry in metrics for name in entry.get("sources", ())}) < 2:
        del wanted["sources"]  # its loss is the loss
    if any("lr_by_group" in entry for entry in metrics):
        del wanted["lr"]  # the largest of them
    drawn = _draw("Training", metrics, wanted)
    return replace(drawn, charts=[loss_chart("Loss", metrics), *drawn.charts]) if metrics else drawn


def _validation(validations: Metrics) -> Section:
    """Draw the curves of a run's validations; nothing if it had none."""
    heading = "Validation on held-out samples"
    if not validations:
        return Section(heading=heading)

    def series(value: Callable[[Mapping[str, Any]], object]) -> list[tuple[float, float]]:
        return [(one["step"], _number(value(one))) for one in validations]

    last = validations[-1]
    chosen = "chosen" in last["losses"]  # in RLHF, whose objective is not in nats of text
    text = "chosen" if chosen else "text"
    losses = {"with media": series(lambda one: one["losses"].get(text, one["loss"]))}
    exact = {}
    if "blind" in last:
        losses["blind"] = series(lambda one: one["blind"]["loss"])
        exact["with media"] = series(lambda one: one["accuracy"])
        exact["blind"] = series(lambda one: one["blind"]["accuracy"])
    title = "Loss on held-out samples"
    charts = [line_chart(f"{title}, of chosen answers" if chosen else title, losses, unit=_NATS)]
    if chosen:
        charts.insert(0, line_chart(title, {"with media": series(lambda one: one["loss"])}))
    charts += [line_chart("Exact answers", exact, from_zero=True)] if exact else []
    best = min(validations, key=lambda one: math.inf if one["loss"] is None else one["loss"])
    return Section(
        heading=heading,
        tiles=[
            ("samples", last["samples"]),
            ("lowest loss", best["loss"]),
            ("after step", best["step"]),
            ("last loss", last["loss"]),
            *([("skipped", last["bad"])] if last["bad"] else []),
        ],
        charts=charts,
        note="Blind is the same model without the media that it sees. An answer is exact if greedy "
        "decoding would write it, token by token."
        if exact
        else "",
    )


def _speed(metrics: Metrics) -> Section:
    drawn = _draw("Speed and memory", metrics, _SPEED)
    means = [
        (name, f"{fmean(values):.1%}")
        for key, name in _MEANS.items()
        if (values := [entry[key] for entry in metrics if key in entry])
    ]
    return replace(drawn, facts=[*drawn.facts, *means])


def _draw(heading: str, metrics: Metrics, wanted: Mapping[str, tuple[str, str]]) -> Section:
    """Return a chart of each key; of one whose values are all equal when rounded, the value."""
    charts, facts = [], []
    for key, (title, unit) in wanted.items():
        series = _series(metrics, key)
        found = {f"{y:.3g}" for points in series.values() for _, y in points if math.isfinite(y)}
        if len(found) > 1:
            smooth = key not in _NOT_SMOOTHED
            charts.append(line_chart(title, series, unit=unit, smooth=smooth, from_zero=True))
        elif found:
            facts.append((title, f"{number(float(found.pop()))} {unit}".strip()))
    return Section(heading=heading, charts=charts, facts=facts)


def _series(metrics: Metrics, key: str) -> dict[str, list[tuple[float, float]]]:
    """Return the values of a key over the steps by name; a missing one is not a number."""
    values = [(entry["step"], _by_name(key, entry.get(key))) for entry in metrics]
    names = dict.fromkeys(name for _, found in values for name in found)
    return {name: [(step, _number(found.get(name))) for step, found in values] for name in names}


def _by_name(key: str, value: object) -> Mapping[str, object]:
    """Return the values of a step: by loss, source or phase; of the ranks' memory, the extremes."""
    if isinstance(value, list):
        extremes = {"highest": max(value), "lowest": min(value)}
        shown = list(extremes.items())[: len(value)]  # of a single rank, one
        return {name: size / 2**30 for name, size in shown}
    if not isinstance(value, Mapping):
        return {key: value}
    return {name: one["loss"] if isinstance(one, Mapping) else one for name, one in value.items()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _forecast(run: Path) -> Section:
    content = read_forecast(run) or {"rows": (), "notes": ()}
    columns = ("quantity", "forecast", "actual", "unit")
    return Section(
        heading="Forecast against actual",
        columns=columns,
        rows=[tuple(row[column] for column in columns) for row in content["rows"]],
        note=" ".join(content["notes"]),
    )


def _cut_samples(run: Path) -> list[Section]:
    """Show the last samples of whose media the encoders take only a part, if there are any."""
    cut = read_cut_samples(run)
    if not cut:
        return []
    shown = [(str(one["step"]), str(one["id"]), str(one["reason"])) for one in cut[-_BAD_SHOWN:]]
    return [
        Section(
            heading=f"Samples with media longer than the encoder takes: {len(cut):,}",
            columns=("step", "sample", "medium"),
            rows=shown,
            note="They are trained on what the encoder takes."
            + (f" The last {_BAD_SHOWN} of them." if len(cut) > _BAD_SHOWN else ""),
        )
    ]


def _bad_samples(run: Path) -> Section:
    """Count the skipped samples by reason, and show the last of them."""
    bad = read_bad_samples(run)
    reasons = [str(one["reason"]).removeprefix(f"sample {one['id']}: ") for one in bad]
    counts = Counter(reasons)
    shown = list(zip(bad, reasons, strict=True))[-_BAD_SHOWN:]
    title = "Skipped samples by reason"
    if len(counts) > _REASONS_SHOWN:
        title += f" (the {_REASONS_SHOWN} most frequent of {len(counts)})"
    return Section(
        heading=f"Skipped samples: {len(bad):,}",
        charts=[bar_chart(title, dict(counts.most_common(_REASONS_SHOWN)))] if bad else (),
        columns=("step", "sample", "reason"),
        rows=[(str(one["step"]), str(one["id"]), reason) for one, reason in shown],
        note=f"The last {_BAD_SHOWN} of them." if len(bad) > _BAD_SHOWN else "",
    )
