"""What a run was, at the head of its page: from its configuration, starts and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from etl.report.page import Cell, Section
from model.spec.system import Schedule
from pipeline.config.files import CONFIG_FILE
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig, read_config
from pipeline.run_folder.metrics_writer import read_bad_samples
from pipeline.run_folder.starts import read_starts

Facts = list[tuple[str, Cell]]
Entries = Sequence[Mapping[str, Any]]

_STAGES = {
    **{"init": "pre-training before MM-PT", "pt": "MM-PT"},
    **{"sft": "MM-IT (SFT)", "rlhf": "MM-IT (RLHF)"},
}
_SCHEDULES: Mapping[Schedule, str] = {
    **{"cosine": "cosine to zero", "linear": "linear to zero", "constant": "constant"},
    "wsd": "constant, then decay to zero over the last {decay:.0%} of the steps",
}


def description(run: Path, metrics: Entries) -> list[Section]:
    """Return what the run was, when it was started and stopped, and what its data contributed."""
    starts = read_starts(run)
    config = run / CONFIG_FILE
    facts = _of_config(read_config(config)) if config.is_file() else []
    if starts:
        last = starts[-1]
        trainable, total = last["parameters"]
        facts += [
            ("parameters trained", f"{trainable:,} of {total:,} ({trainable / max(1, total):.2%})"),
            *((name, last[name]) for name in ("command", "code")),
        ]
    facts += [*_checkpoints(run), ("skipped samples", len(read_bad_samples(run)))]
    return [
        Section(heading="What it was", tiles=_totals(metrics, starts), facts=facts),
        _starts_and_stops(starts),
        _sources(metrics),
    ]


def _totals(metrics: Entries, starts: Entries) -> Facts:
    if not metrics:
        return []
    first, last = metrics[0], metrics[-1]
    seconds = sum(entry["step_seconds"] for entry in metrics)
    tokens = sum(entry["tokens_per_second"] * entry["step_seconds"] for entry in metrics)
    wall_clock = sum(map(_seconds, starts))
    return [
        ("steps", last["step"]),
        ("samples", last["samples"]),
        ("tokens", last["tokens"]),
        ("first loss", first["loss"]),
        ("last loss", last["loss"]),
        ("tokens per second", round(tokens / seconds) if seconds else None),
        ("time in steps", _duration(seconds)),
        *([("wall-clock", _duration(wall_clock))] if starts else []),
    ]


def _of_config(config: RunConfig) -> Facts:
    settings, system, validation = config.settings, config.system, config.validation_data
    part = f", {config.part}" if config.part else ""
    limit = f", at most {config.max_steps:,} steps" if config.max_steps else ""
    rate = f"{settings.learning_rate:g}, after a warm-up over {settings.warmup:.0%} of the steps"
    schedule = _SCHEDULES[settings.schedule].format(decay=settings.decay)
    checkpoint = "" if config.init_checkpoint == "newest" else f", {config.init_checkpoint}"
    origin = f"{config.init_from}{checkpoint}" if config.init_from else ""
    batch = f"{settings.global_batch:,} samples per step, {settings.micro_batch:,} per micro-batch"
    return [
        ("preset", f"{system.name} ({system.paper})" if system.paper else system.name),
        ("stage", f"{config.stage}: {_STAGES[config.stage]}{part}"),
        ("data", ", ".join(config.data)),
        *([("validation data", ", ".join(validation))] if validation else []),
        ("mix", _mix(config.mix)),
        ("epochs", f"{settings.epochs}{limit}"),
        ("starts from", origin or f"no other run; {config.weights} frozen weights"),
        ("learning rate", f"{rate}; {schedule}"),
        ("batch", batch),
        ("precision", f"{settings.precision}; DeepSpeed: {settings.ds_config}"),
        ("seed", str(config.seed)),
    ]


def _mix(mix: Mix) -> str:
    parts = list(mix.shares)
    parts += [f"temperature {mix.temperature:g}"] if mix.temperature != 1 else []
    parts += [f"a sample at most {mix.cap:g} times"] if mix.cap is not None else []
    return ", ".join(parts) or "each sample once per epoch"


def _checkpoints(run: Path) -> Facts:
    found = sorted(run.glob("checkpoints/step-????????"))
    steps = ", ".join(str(int(path.name.removeprefix("step-"))) for path in found)
    best = run / "checkpoints" / "best"
    if best.is_file():
        steps += f"; the lowest validation loss: {int(best.read_text().removeprefix('step-'))}"
    return [("checkpoints", f"of step {steps}")] if steps else []


def _starts_and_stops(starts: Entries) -> Section:
    columns = ["started (UTC)", "host", "ranks", "from step", "to step", "time", "end"]
    same = len({start["code"] for start in starts}) < 2  # then the facts have it
    columns += [] if same else ["code"]
    rows = [
        (
            f"{datetime.fromtimestamp(start['started'], UTC):%Y-%m-%d %H:%M}",
            *(start[name] for name in ("host", "ranks", "from_step", "to_step")),
            None if start["ended"] is None else _duration(_seconds(start)),
            start["outcome"],
            *([] if same else [start["code"]]),
        )
        for start in starts
    ]
    return Section(heading="Starts and stops", columns=columns, rows=rows)


def _sources(metrics: Entries) -> Section:
    """Return what each data folder contributed; nothing if there is only one."""
    totals: dict[str, Counter[str]] = {}
    last: dict[str, float] = {}
    for entry in metrics:
        for name, source in entry.get("sources", {}).items():
            counts = {key: source[key] for key in ("samples", "tokens")}
            totals.setdefault(name, Counter()).update(counts)
            if source["loss"] is not None:
                last[name] = source["loss"]
    tokens = max(1, sum(counts["tokens"] for counts in totals.values()))
    rows = [
        (name, one["samples"], one["tokens"], one["tokens"] / tokens, last.get(name))
        for name, one in totals.items()
    ]
    columns = ("source", "samples", "tokens", "share of tokens", "last loss")
    return Section(heading="Data and mix", columns=columns, rows=rows if len(rows) > 1 else ())


def _seconds(start: Mapping[str, Any]) -> float:
    """Return how long a start took; 0 if that is not known."""
    return float(start["ended"] - start["started"]) if start["ended"] else 0.0


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
