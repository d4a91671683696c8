"""The summary of a job: a table on the console, and `report.html`."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from etl.report.charts import bars, histogram, number
from etl.report.hints import hint_for
from etl.report.statistics import download_yield, spread
from etl.storage.atomic import atomic_file
from etl.storage.manifest import Manifest
from etl.storage.schema import PLACEHOLDER_PATTERN, Medium, Sample
from etl.storage.shards import read_samples

DROPS_FILE = "drops.parquet"
TIMINGS_FILE = "timings.json"
"""Seconds and rows of each stage, as `etl.runtime.job` measured them."""

_SAMPLES = 24
_DROPS_PER_REASON = 3
_THUMBNAIL = 320
_MAX_EMBEDDED_BYTES = 1_000_000
_ELEMENTS = {
    "image": "<img alt='' src='{}'>",
    "video": "<video controls src='{}'></video>",
    "audio": "<audio controls src='{}'></audio>",
}
"""Kind of medium → the HTML element that shows it."""
_STYLE = """
:root { --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --bar: #3f6fb5; --card: #fff }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #f5f6f8; margin: 0 }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 0 0 .9rem }
h3 { font-size: .85rem; margin: 0 0 .3rem; font-weight: 600 }
.soft { color: var(--soft); font-size: .85rem; margin: .2rem 0 0 }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.2rem 1.4rem; margin-top: 1.1rem; overflow-x: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem;
  margin-top: 1.1rem }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem 1.1rem }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.3 }
.tiles span { color: var(--soft); font-size: .85rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
th { font-size: .8rem; color: var(--soft); font-weight: 600 }
td:first-child, th:first-child, .words td, .words th { text-align: left }
.words td { font-size: .82rem; vertical-align: top; overflow-wrap: anywhere; min-width: 4rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.4rem }
.samples { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
figure { margin: 0 } figcaption { font-size: .78rem; overflow-wrap: anywhere; margin-top: .3rem }
figure img, figure video, figure audio { width: 100%; border-radius: 6px; background: #eee }
figure img, figure video { aspect-ratio: 1; object-fit: contain }
svg { max-width: 100%; height: auto } svg rect { fill: var(--bar) }
svg path { stroke: #98a2b3 } svg text { font: 12px system-ui, sans-serif; fill: var(--ink);
  dominant-baseline: middle } svg .label { text-anchor: end }
"""


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
    kept = _share(manifest.rows, manifest.input_rows)
    table.add_row(f"kept, in {len(manifest.shards)} shards", str(manifest.rows), kept)
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
    title = html.escape(f"mmloom ETL: {manifest.job}")
    statistics = manifest.details.get("statistics", {})
    histograms = statistics.get("histograms", {})
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>",
        "<meta name='viewport' content='width=device-width'>",
        f"<style>{_STYLE}</style><main><h1>{title}</h1>",
        f"<p class='soft'>{html.escape(str(folder.resolve()))}</p>",
        _tiles(manifest),
        _section("No row was kept", html.escape(hint_for(manifest) or "")),
        _section("Drop reasons", drops_chart(manifest.drops) or "<p>No row was dropped.</p>"),
        _section("Steps", _yields_table(manifest)),
        _section("Speed of the stages", _timings_table(folder)),
        _section(
            "Distributions of kept rows",
            "".join(_histogram(*entry) for entry in histograms.items()),
            note=_sampled_note(manifest),
            style="grid",
        ),
        _section("Hosts with most kept rows", _hosts_chart(statistics.get("hosts", ()))),
        _section("Hosts with most failures", _hosts_chart(statistics.get("failing_hosts", ()))),
        _section("Samples", "".join(map(_figure, _samples(folder, manifest))), style="samples"),
        _section("Examples of dropped rows", _drops_table(folder)),
        "</main></html>",
    ]
    with atomic_file(folder / "report.html") as stream:
        stream.write("\n".join(parts).encode())


def _section(title: str, body: str, *, note: str = "", style: str = "") -> str:
    """A section of the page; nothing if its body is empty."""
    if not body:
        return ""
    footer = f"<p class='soft'>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2><div class='{style}'>{body}</div>{footer}</section>"


def _tiles(manifest: Manifest) -> str:
    downloads = download_yield(manifest)
    size = sum(shard.bytes for shard in manifest.shards)
    tiles = [
        (f"{manifest.input_rows:,}", "input rows"),
        (f"{manifest.rows:,}", "rows kept"),
        (_share(manifest.rows, manifest.input_rows), "of the input"),
        *([(f"{downloads:.1%}", "of downloads succeeded")] if downloads is not None else []),
        (f"{len(manifest.shards):,}", "shards"),
        (f"{size / 1e6:,.1f} MB", "in total"),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    return f"<div class='tiles'>{cells}</div>"


def drops_chart(drops: Mapping[str, int]) -> str:
    """Drop reasons as a bar chart: an inline SVG element, or an empty string."""
    whole = sum(drops.values())
    ordered = _ordered(drops)
    notes = [_share(count, whole) for _, count in ordered]
    return bars(ordered, notes=notes) if ordered else ""


def _hosts_chart(hosts: Sequence[Sequence[Any]]) -> str:
    notes = [str(rest[0]) if rest else "" for _, _, *rest in hosts]
    rows = [(host, count) for host, count, *_ in hosts]
    return bars(rows, notes=notes if any(notes) else ()) if rows else ""


def _yields_table(manifest: Manifest) -> str:
    rows = [
        (
            entry["step"],
            f"{entry['rows_in']:,}",
            f"{entry['rows_out']:,}",
            _share(entry["rows_out"], entry["rows_in"]),
        )
        for entry in manifest.details.get("yields", ())
    ]
    return _table(("step", "in", "out", "kept"), rows)


def _timings_table(folder: Path) -> str:
    path = folder / TIMINGS_FILE
    if not path.exists():
        return ""
    rows = [
        (stage, f"{one['seconds']:,.1f} s", f"{one['rows']:,}", _rate(one["rows"], one["seconds"]))
        for stage, one in json.loads(path.read_bytes()).items()
    ]
    return _table(("stage", "time", "rows", "rows per second"), rows)


def _rate(rows: int, seconds: float) -> str:
    return number(rows / seconds) if seconds else ""


def _sampled_note(manifest: Manifest) -> str:
    sampled = manifest.details.get("statistics", {}).get("sampled_rows", 0)
    if sampled == manifest.rows:
        return "Over all kept rows."
    return f"Over {sampled:,} rows, from evenly spaced shards."


def _histogram(name: str, data: Mapping[str, Any]) -> str:
    scale = ", log scale" if data["log"] else ""
    subtitle = f"median {number(data['median'])}{scale}"
    title = f"{html.escape(name)} <span class='soft'>{subtitle}</span>"
    return f"<div><h3>{title}</h3>{histogram(data['edges'], data['counts'])}</div>"


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


def _drops_table(folder: Path) -> str:
    path = folder / DROPS_FILE
    if not path.exists():
        return ""
    rows: list[tuple[str, ...]] = []
    seen: dict[str, int] = {}
    for batch in pq.ParquetFile(path).iter_batches():
        for drop in batch.to_pylist():
            reason = drop["reason"]
            seen[reason] = seen.get(reason, 0) + 1
            if seen[reason] <= _DROPS_PER_REASON:
                texts = (str(drop[name] or "")[:160] for name in ("url", "detail"))
                rows.append((reason, drop["step"], str(drop["row"]), *texts))
    table = _table(("reason", "step", "row", "URL or name", "detail"), sorted(rows))
    return f"<div class='words'>{table}</div>" if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{_cells(row, 'td')}" for row in rows)
    return f"<table><tr>{_cells(head, 'th')}{body}</table>" if body else ""


def _cells(values: Sequence[str], kind: str) -> str:
    return "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in values)


def _figure(sample: Sample) -> str:
    text = html.escape(_caption(sample)).replace("\n", "<br>")
    media = "".join(map(_embed, sample.media))
    return f"<figure>{media}<figcaption>{text}</figcaption></figure>"


def _embed(medium: Medium) -> str:
    """A medium as an HTML element; if it is too large or has none, its kind and size in words."""
    data, mime = medium.data, medium.mime
    if medium.kind == "image":
        data, mime = _thumbnail(medium)
    if medium.kind not in _ELEMENTS or len(data) > _MAX_EMBEDDED_BYTES:
        return f"<p class='soft'>{medium.kind}, {len(medium.data):,} bytes</p>"
    encoded = base64.b64encode(data).decode()
    return _ELEMENTS[medium.kind].format(f"data:{mime};base64,{encoded}")


def _thumbnail(medium: Medium) -> tuple[bytes, str]:
    """An image's bytes and MIME type, scaled down if it is large."""
    if len(medium.data) < 20_000:
        return medium.data, medium.mime
    with Image.open(io.BytesIO(medium.data)) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=80)
    return stream.getvalue(), "image/jpeg"


def _caption(sample: Sample) -> str:
    texts: Sequence[str] = [PLACEHOLDER_PATTERN.sub("", turn.text).strip() for turn in sample.turns]
    return "\n".join(text for text in texts if text)[:400]
