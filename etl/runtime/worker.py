"""What a Ray worker does with one planned range: download, check, and write it to the ledger."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from etl.download.backends import make_backend
from etl.download.base import BackendName, Fetched, FetchOptions, dns_trouble
from etl.filters.base import DROPS, StepYield
from etl.filters.records import is_url
from etl.media.faces import Box
from etl.media.gather import (
    STEPS,
    Anywhere,
    Found,
    Gathered,
    Key,
    MediaPlan,
    check_medium,
    gather,
    with_media,
)
from etl.media.image import ImageLimits
from etl.runtime.job_state import DROPPED, KEYS, STAGED, Ledger, Receipt, read_table, write_table
from etl.runtime.scores import computed_path, with_scores
from etl.storage.atomic import link_file
from etl.storage.schema import Sample, Turn
from etl.storage.shards import copy_rows, shard_name, write_shard

Identity = Literal["medium", "record"]
"""What makes two samples the same: their medium, or their medium and their text."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker needs to know; it travels to other processes.

    `stop_on_dns`: a range in which hardly any name could be resolved is trouble for the job.
    """

    output: Path
    source: str
    identity: Identity
    backend: BackendName
    fetch: FetchOptions
    image: ImageLimits
    media: MediaPlan = field(default_factory=MediaPlan)
    stop_on_dns: bool = True


KEPT = pa.schema(
    [
        *(("row", pa.int64()), ("id", pa.string()), ("url", pa.string()), ("key", pa.string())),
        ("phash", pa.list_(pa.uint64())),
    ]
)
"""One staged row: where it stood in the input, what it is, the key of its identity, and its media's
perceptual hashes (null for what is no image)."""


class RangeWorker:
    """Ray Data's actor: takes one whole range, leaves its samples and receipt in the ledger.

    Media go from the connection straight into the staged shard, never through Ray's object store.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        web = make_backend(spec.backend, spec.fetch)
        self._spec = spec
        self._ledger = Ledger(spec.output)
        self._media = Anywhere(web, spec.media, max_bytes=spec.fetch.bounds.max_bytes)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of one `range` number → that number, its rows, and `trouble` if there was any.

        Trouble is what the whole job should stop for; then the range does not count as done.
        """
        (number,) = table["range"].to_pylist()
        candidates = self._ledger.range_candidates(number)
        told = pa.array([self.do(number, candidates)], pa.string())
        return pa.table({"range": [number], "rows": [candidates.num_rows], "trouble": told})

    def do(self, number: int, candidates: pa.Table) -> str | None:
        """Do a range; it counts unless there was trouble, which is told."""
        books = _Books()
        samples = self._samples(candidates, books)
        with self._ledger.draft(number) as draft:
            first = next(samples, None)
            shard = None
            if first:  # without a sound row there is no shard
                shard = write_shard(draft, STAGED, itertools.chain([first], samples))
            write_table(draft / KEYS, pa.Table.from_pylist(books.kept, schema=KEPT))
            write_table(draft / DROPPED, pa.Table.from_pylist(books.drops, schema=DROPS))
            if self._spec.stop_on_dns:
                trouble = dns_trouble(candidates["url"].to_pylist(), books.drops)
                if trouble:
                    return trouble
            yields = books.yields(candidates.num_rows)
            self._ledger.save_receipt(draft, Receipt(number=number, yields=yields, shard=shard))
        return None

    def _samples(self, candidates: pa.Table, books: _Books) -> Iterator[Sample]:
        """Samples of the sound records, as their media come; the books tell of all."""
        rows = with_media(candidates).to_pylist()
        faces = {row["url"]: row["boxes"] for row in rows if row.get("boxes")}
        found = gather(rows, functools.partial(self._found, faces=faces), self._spec.media.lost)
        for row, one in zip(rows, found, strict=True):
            named = {name: row[name] for name in ("row", "id", "url")}
            if isinstance(one, Found):
                told = {"step": one.step, "reason": one.reason, "detail": one.detail}
                books.drops.append({**named, **told})
                continue
            sample = self._sample(one)
            digests = [medium.sha256 for medium in sample.media]
            key = sample_key(digests, list(map(vars, sample.turns)), self._spec.identity)
            hashes = [found.phash for found in one.found]
            books.kept.append({**named, "key": key, "phash": hashes})
            yield sample

    def _found(self, keys: Sequence[Key], faces: Mapping[str, Sequence[Box]]) -> Iterator[Found]:
        def finish(place: int, fetched: Fetched) -> Found:
            key = keys[place]
            boxes = faces.get(key[1], ())
            return check_medium(key, fetched, self._spec.media, self._spec.image, boxes)

        return self._media.stream([url for _, url, _, _ in keys], finish)

    def _sample(self, gathered: Gathered) -> Sample:
        row = gathered.row
        scores = {
            name.removeprefix("score."): value
            for name, value in row.items()
            if name.startswith("score.") and value is not None
        }
        for name, value in (pair for found in gathered.found for pair in found.scores.items()):
            scores[name] = min(value, scores.get(name, value))  # of several media the least
        where = {}
        if row["url"]:
            where = {"url" if is_url(row["url"]) else "file": row["url"]}
        if row.get("language"):  # told by a step; what the list says goes before it
            where["language"] = row["language"]
        notes = {k: v for found in gathered.found for k, v in found.notes.items()}
        return Sample(
            id=row["id"],
            source=self._spec.source,
            turns=_turns(row["turns"]),
            media=tuple(found.medium for found in gathered.found if found.medium),
            rejected=_turns(row.get("rejected")),
            feedback=_turns(row.get("feedback")),
            scores=scores,
            lineage={**where, "row": str(row["row"]), **json.loads(row["lineage"]), **notes},
        )


@dataclass(frozen=True, kw_only=True)
class _Books:
    """What became of a range's candidates: rows of `KEPT` and of `DROPS`."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    drops: list[dict[str, Any]] = field(default_factory=list)

    def yields(self, rows: int) -> tuple[StepYield, ...]:
        """How many of all rows came through each step; one is lost where its media were."""
        found = []
        for step in STEPS:
            left = rows - sum(drop["step"] == step for drop in self.drops)
            found.append(StepYield(step=step, rows_in=rows, rows_out=left))
            rows = left
        return tuple(found)


def _turns(rows: list[dict[str, str]] | None) -> tuple[Turn, ...]:
    return tuple(Turn(**row) for row in rows or ())


def sample_key(
    digests: Sequence[str], turns: Sequence[Mapping[str, str]], identity: Identity
) -> str:
    """What two samples that are the same have in common: their media, or media and text."""
    parts = list(digests)
    if identity == "record":
        text = json.dumps([[turn["role"], turn["text"]] for turn in turns])
        parts.append(hashlib.sha256(text.encode()).hexdigest())
    return " ".join(parts)


class WriteFinal:
    """Writes a range's final shard: its staged samples without the job's duplicates.

    Where nothing goes, and nothing is added, the staged shard is the final one.

    Args:
        output: the job's output folder.
    """

    def __init__(self, output: Path) -> None:
        self._ledger = Ledger(output)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of one `range` and its rows to `keep` → the range and how many those are."""
        (row,) = table.to_pylist()
        number = row["range"]
        rows = read_table(self._ledger.keys_path(number))["row"].combine_chunks()
        kept = pc.is_in(rows, pa.array(row["keep"], pa.int64()))
        computed = computed_path(self._ledger, number)
        change = None
        if computed.exists():
            scores = read_table(computed).filter(kept)

            def change(samples: pa.Table, first: int) -> pa.Table:
                return with_scores(samples, scores.slice(first, samples.num_rows))

        staged, target = self._ledger.staged_path(number), self._ledger.output / shard_name(number)
        receipt = self._ledger.receipt(number)
        # A copy of all rows as they are would be the same bytes.
        whole = change is None and pc.all(kept).as_py()
        if whole and receipt and receipt.shard and link_file(staged, target):
            shard = dataclasses.replace(receipt.shard, path=target.name)
        else:
            shard = copy_rows(staged, target, kept, change)
        self._ledger.save_written(number, shard)
        return pa.table({"range": [number], "rows": [shard.rows]})
