"""Statistics of a job's output, stored in its manifest and shown in its report."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from etl.storage.manifest import Manifest, Shard

MAX_SHARDS = 64
"""Evenly spaced shards that the statistics are computed from, so that large jobs stay fast."""

_BINS = 24
_TOP = 12
_LOG_RATIO = 30.0  # values with a larger ratio of maximum to minimum get bins on a log scale
_MEDIA = ("width", "height", "duration", "frames", "sample_rate", "points")

Statistics = dict[str, Any]


def statistics(folder: Path, shards: Sequence[Shard], drops: pa.Table) -> Statistics:
    """Histograms of the kept rows, and the hosts with most kept and most failed rows.

    Args:
        folder: the shards' folder.
        shards: all shards.
        drops: the job's drops, see `etl.filters.base.DROPS`.

    Returns:
        `sampled_rows`, `histograms` (name → `edges`, one more than `counts`, `median`, and `log`
        for bins on a log scale), `hosts` and `failing_hosts` (lists of `[host, rows]`, and of
        `[host, rows, most frequent reason]`).
    """
    values: dict[str, list[NDArray[Any]]] = collections.defaultdict(list)
    hosts: collections.Counter[str] = collections.Counter()
    rows = 0
    for batch in _batches(folder, spread(shards, MAX_SHARDS)):
        rows += batch.num_rows
        for name, column in _columns(batch):
            values[name].append(column)
        hosts.update(_hosts(_map_values(batch["lineage"], "url")))
    histograms = {name: found for name in values if (found := _histogram(values[name]))}
    return {
        "sampled_rows": rows,
        "histograms": histograms,
        "hosts": [list(entry) for entry in _top(hosts)],
        "failing_hosts": _failing(drops),
    }


def download_yield(manifest: Manifest) -> float | None:
    """The share of rows whose download succeeded; None if nothing was downloaded."""
    for step in manifest.details.get("yields", ()):
        if step["step"] == "download" and step["rows_in"]:
            return float(step["rows_out"]) / float(step["rows_in"])
    return None


def spread(shards: Sequence[Shard], number: int) -> list[Shard]:
    """At most `number` shards, evenly spaced."""
    if len(shards) <= number:
        return list(shards)
    return [shards[index * len(shards) // number] for index in range(number)]


def _batches(folder: Path, shards: Iterable[Shard]) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        with pa.memory_map(str(folder / shard.path)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


def _columns(batch: pa.RecordBatch) -> Iterator[tuple[str, NDArray[Any]]]:
    turns = batch["turns"].flatten()
    answers = turns.field("text").filter(pc.equal(turns.field("role"), "assistant"))
    yield "characters of answers", _numbers(pc.utf8_length(answers))
    media = batch["media"].flatten()
    for name in _MEDIA:
        yield name, _numbers(media.field(name))
    yield "kilobytes", _numbers(pc.binary_length(media.field("data"))) / 1000
    width, height = _numbers(media.field("width"), 0), _numbers(media.field("height"), 0)
    sized = (width > 0) & (height > 0)
    yield "aspect (width / height)", width[sized] / height[sized]
    names, scores = batch["scores"].keys, batch["scores"].items
    for name in pc.unique(names).to_pylist():
        yield f"score {name}", _numbers(scores.filter(pc.equal(names, name)))


def _numbers(column: pa.Array, fill: float | None = None) -> NDArray[Any]:
    """A column's values as floats, with nulls dropped or replaced by `fill`."""
    column = column.drop_null() if fill is None else column.fill_null(fill)
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def _map_values(column: pa.MapArray, key: str) -> list[str]:
    return column.items.filter(pc.equal(column.keys, key)).to_pylist()


def _hosts(urls: Iterable[str | None]) -> Iterator[str]:
    for url in urls:
        try:
            host = urlsplit(url or "").hostname
        except ValueError:
            continue
        if host:
            yield host


def _histogram(parts: Sequence[NDArray[Any]]) -> Mapping[str, Any] | None:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > _LOG_RATIO * low
    if log:
        edges = np.geomspace(low, high, _BINS + 1)
    else:
        bins = min(_BINS, max(1, int(high - low))) if _are_integers(values) else _BINS
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts, _ = np.histogram(values, edges)
    rounded = [float(f"{edge:.5g}") for edge in edges]
    median = float(f"{np.median(values):.5g}")
    return {"edges": rounded, "counts": counts.tolist(), "median": median, "log": log}


def _are_integers(values: NDArray[Any]) -> bool:
    return bool((values == np.round(values)).all())


def _top(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_TOP]


def _failing(drops: pa.Table) -> list[list[Any]]:
    failed = drops.filter(pc.equal(drops["step"], "download"))
    counts: collections.Counter[str] = collections.Counter()
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for url, reason in zip(failed["url"].to_pylist(), failed["reason"].to_pylist(), strict=True):
        for host in _hosts([url]):
            counts[host] += 1
            reasons[host][reason] += 1
    return [[host, count, _top(reasons[host])[0][0]] for host, count in _top(counts)]
