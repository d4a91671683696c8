"""The summary of a job: a table on the console, and `report.html`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from etl.report.charts import bar_chart, histogram, number
from etl.report.hints import hint_for
from etl.report.media import embed_any
from etl.report.page import Card, Cell, Section, write_page
from etl.report.statistics import download_yield, spread
from etl.storage.manifest import Manifest
from etl.storage.schema import Sample, words_of
from etl.storage.shards import read_samples

DROPS_FILE = "drops.parquet"
TIMINGS_FILE = "timings.json"
"""Seconds and rows of each stage, as `etl.runtime.job` measured them."""

_SAMPLES = 24
_DROPS_PER_REASON = 3


def print_summary(folder: Path, manifest: Manifest, *, as_json: bool) -> None:
    """Print how many rows were read, kept and dropped, by reason; and a hint if none was kept."""
    console = Console()
    hint = hint_for(manifest)
    if as_json:
        value = dataclasses.asdict(manifest)
        names = ("job", "input_rows", "rows", "drops", "shards", "details")
        summary = {name: value[name] for name in names}
        console.file.write(json.dumps(summary | ({"hint": hint} if hint else {})) + "\n")
        return
    table = Table(title=f"{manifest.job}: {manifest.input_rows} input rows")
    table.add_column("drop reason")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for reason, count in _ordered(manifest.drops):
        table.add_row(reason, str(count), _share(count, manifest.input_rows))
    table.add_section()
    count = len(manifest.shards)
    kept = _share(manifest.rows, manifest.input_rows)
    table.add_row(f"kept, in {count} shard{'s' * (count != 1)}", str(manifest.rows), kept)
    console.print(table)
    if hint:
        console.print(f"hint: {hint}", soft_wrap=True, highlight=False, markup=False)
    # The absolute path: a job that Ray runs on another machine resolves a relative one there.
    console.print(f"wrote {folder.resolve()}", soft_wrap=True, highlight=False)


def _ordered(drops: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(drops.items(), key=lambda entry: (-entry[1], entry[0]))


def _share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}"


def write_report(folder: Path, manifest: Manifest) -> None:
    """Write `report.html`: yields, drop reasons, histograms, hosts, speed, samples and drops.

    The numbers come from the manifest (`details`), the stages' speed from `timings.json`.
    """
    hint = hint_for(manifest)
    statistics = manifest.details.get("statistics", {})
    histograms = statistics.get("histograms", {})
    sections = [
        Section(heading="Rows", tiles=_totals(manifest)),
        Section(heading="No row was kept", paragraphs=[hint] if hint else ()),
        Section(
            heading="Drop reasons",
            charts=[drops_chart(manifest.drops)] if manifest.drops else (),
            paragraphs=() if manifest.drops else ("No row was dropped.",),
        ),
        Section(heading="Steps", columns=("step", "in", "out", "kept"), rows=_yields(manifest)),
        Section(
            heading="Speed of the stages",
            columns=("stage", "time", "rows", "rows per second"),
            rows=_timings(folder),
        ),
        Section(
            heading="Distributions of kept rows",
            charts=[_histogram(*each) for each in histograms.items() if len(each[1]["counts"]) > 1],
            facts=[
                (name, f"median {number(one['median'])}")
                for name, one in histograms.items()
                if len(one["counts"]) == 1
            ],
            note=_sampled_note(manifest),
        ),
        Section(heading="Hosts", charts=_hosts(statistics)),
        Section(heading="Samples", cards=[_card(sample) for sample in _samples(folder, manifest)]),
        Section(
            heading="Examples of dropped rows",
            columns=("reason", "step", "row", "URL or name", "detail"),
            rows=_drops(folder),
        ),
    ]
    title = f"mmloom ETL: {manifest.job}"
    path = folder / "report.html"
    write_page(path, title=title, subtitle=str(folder.resolve()), sections=sections)


def _totals(manifest: Manifest) -> list[tuple[str, Cell]]:
    downloads = download_yield(manifest)
    size = sum(shard.bytes for shard in manifest.shards)
    return [
        ("input rows", manifest.input_rows),
        ("rows kept", manifest.rows),
        ("share kept", _share(manifest.rows, manifest.input_rows)),
        *([("successful downloads", f"{downloads:.1%}")] if downloads is not None else []),
        ("shards", len(manifest.shards)),
        ("size", f"{size / 1e6:,.1f} MB"),
    ]


def drops_chart(drops: Mapping[str, int]) -> Markup:
    """Return the drop reasons as a bar chart, the most frequent first, with their shares."""
    ordered = dict(_ordered(drops))
    notes = [_share(count, sum(drops.values())) for count in ordered.values()]
    return bar_chart("Dropped rows by reason", ordered, notes=notes)


def _hosts(statistics: Mapping[str, Any]) -> list[Markup]:
    """Return the charts of the hosts with most kept and with most failed rows, where there are."""
    titles = {"hosts": "Hosts with most kept rows", "failing_hosts": "Hosts with most failures"}
    charts = []
    for key, title in titles.items():
        hosts = statistics.get(key, ())
        rows = {host: count for host, count, *_ in hosts}
        notes = [str(reason) for _, _, *reasons in hosts for reason in reasons]
        charts += [bar_chart(title, rows, notes=notes)] if rows else []
    return charts


def _yields(manifest: Manifest) -> list[tuple[Cell, ...]]:
    yields = manifest.details.get("yields", ())
    counts = [(entry["step"], entry["rows_in"], entry["rows_out"]) for entry in yields]
    return [(step, before, after, _share(after, before)) for step, before, after in counts]


def _timings(folder: Path) -> list[tuple[Cell, ...]]:
    path = folder / TIMINGS_FILE
    stages = json.loads(path.read_bytes()) if path.exists() else {}
    counts = [(stage, one["seconds"], one["rows"]) for stage, one in stages.items()]
    return [
        (stage, f"{seconds:,.1f} s", rows, rows / seconds if seconds else None)
        for stage, seconds, rows in counts
    ]


def _sampled_note(manifest: Manifest) -> str:
    sampled = manifest.details.get("statistics", {}).get("sampled_rows", 0)
    if sampled == manifest.rows:
        return "Over all kept rows."
    return f"Over {sampled:,} rows, from evenly spaced shards."


def _histogram(name: str, data: Mapping[str, Any]) -> Markup:
    scale = ", log scale" if data["log"] else ""
    note = f"median {number(data['median'])}{scale}"
    return histogram(name, data["edges"], data["counts"], note=note)


def _samples(folder: Path, manifest: Manifest) -> list[Sample]:
    """The first rows of evenly spaced shards."""
    chosen = spread(manifest.shards, _SAMPLES)
    found: list[Sample] = []
    for index, shard in enumerate(chosen):
        count = -(-(_SAMPLES - len(found)) // (len(chosen) - index))
        one = dataclasses.replace(
            manifest, shards=(shard,), input_rows=shard.rows, rows=shard.rows, drops={}
        )
        found += read_samples(folder, one, count)
    return found


def _drops(folder: Path) -> list[tuple[str, ...]]:
    """Return the first dropped rows of every reason."""
    path = folder / DROPS_FILE
    rows: list[tuple[str, ...]] = []
    seen: Counter[str] = Counter()
    for batch in pq.ParquetFile(path).iter_batches() if path.exists() else ():
        for drop in batch.to_pylist():
            seen[drop["reason"]] += 1
            if seen[drop["reason"]] <= _DROPS_PER_REASON:
                texts = (str(drop[name] or "")[:160] for name in ("url", "detail"))
                rows.append((drop["reason"], drop["step"], str(drop["row"]), *texts))
    return sorted(rows)


def _card(sample: Sample) -> Card:
    texts = [words_of(turn.text).strip() for turn in sample.turns]
    text = "\n".join(filter(None, texts))[:400]
    return Card(media=[embed_any(medium) for medium in sample.media], text=text)
