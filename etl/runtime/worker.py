"""What a worker does with one work unit: download, check, and stage its samples on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from etl.cli import UserError
from etl.download.backends import make_backend
from etl.download.base import BackendName, Fetched, FetchOptions, dns_outage
from etl.filters.base import DROPS, StepYield
from etl.filters.records import is_url
from etl.filters.urls import display_url
from etl.media.faces import Box
from etl.media.gather import (
    STEPS,
    CheckedMedium,
    GatheredRecord,
    MediaFetcher,
    MediaOptions,
    MediumKey,
    check_medium,
    gather,
    with_media,
)
from etl.media.image import ImageLimits
from etl.runtime.isolation import DECODE_SECONDS, CrashedError, Deadline, IsolatedCalls
from etl.runtime.job_state import (
    DROPPED,
    KEYS,
    STAGED,
    JobState,
    UnitResult,
    read_table,
    write_table,
)
from etl.runtime.scores import scores_path, with_scores
from etl.sources.base import Identity
from etl.storage.atomic import link_file
from etl.storage.lineage import MEDIA_URLS
from etl.storage.schema import Sample, Turn
from etl.storage.schema import check as check_sample
from etl.storage.shards import copy_rows, shard_name, write_shard


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Configuration of a worker; pickled to other processes.

    `stop_on_dns_outage`: a unit in which hardly any host name resolves fails the job. `check`
    decodes a medium within `decode_seconds`.
    """

    output: Path
    source: str
    identity: Identity
    backend: BackendName
    fetch: FetchOptions
    image: ImageLimits
    media: MediaOptions = field(default_factory=MediaOptions)
    stop_on_dns_outage: bool = True
    check: Check = check_medium
    decode_seconds: float = DECODE_SECONDS


@dataclass(frozen=True, kw_only=True)
class WorkUnit:
    """A unit to process; `isolated` if a worker has died of it: a process for every medium."""

    number: int
    isolated: bool = False

    def after_death(self) -> WorkUnit:
        """The unit as it is processed after a worker has died of it."""
        return dataclasses.replace(self, isolated=True)


Check = Callable[..., CheckedMedium]
"""As `check_medium`."""

STAGED_SCHEMA = pa.schema(
    [
        *(("row", pa.int64()), ("id", pa.string()), ("url", pa.string()), ("key", pa.string())),
        ("phash", pa.list_(pa.uint64())),
    ]
)
"""One staged row: its input row, id and URL, its identity key (`sample_key`), and the perceptual
hashes of its media (null for media other than images)."""


class DownloadWorker:
    """Downloads one unit at a time; leaves its samples and its result in the job state.

    Media go from the connection straight into the staged shard, never through the executor.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        web = make_backend(spec.backend, spec.fetch)
        self._spec = spec
        self._state = JobState(spec.output)
        self._media = MediaFetcher(web, spec.media, max_bytes=spec.fetch.limits.max_bytes)
        self._deadline = Deadline(spec.decode_seconds)

    def __call__(self, unit: WorkUnit) -> int:
        """Process a unit; returns the number of its candidates.

        Raises:
            UserError: a reason to stop the whole job; the unit then does not count as done.
        """
        candidates = self._state.unit_candidates(unit.number)
        with contextlib.ExitStack() as stack:
            check = self._check
            if unit.isolated:
                isolated = stack.enter_context(IsolatedCalls(self._spec.decode_seconds))
                check = functools.partial(self._check_isolated, isolated)
            self.process(unit.number, candidates, check)
        return candidates.num_rows

    def process(self, number: int, candidates: pa.Table, check: Check | None = None) -> None:
        """Process a unit, whose candidates are given; raises UserError, see `__call__`."""
        log = _UnitLog()
        samples = self._samples(candidates, log, check or self._check)
        with self._state.open_unit(number) as folder:
            first = next(samples, None)
            shard = None
            if first:  # a unit without a valid row has no shard
                shard = write_shard(folder, STAGED, itertools.chain([first], samples))
            write_table(folder / KEYS, pa.Table.from_pylist(log.staged, schema=STAGED_SCHEMA))
            write_table(folder / DROPPED, pa.Table.from_pylist(log.drops, schema=DROPS))
            if self._spec.stop_on_dns_outage:
                error = dns_outage(candidates["url"].to_pylist(), log.drops)
                if error:
                    raise UserError(f"{error}; repeat the command to resume")
            yields = log.yields(candidates.num_rows)
            self._state.commit_unit(folder, UnitResult(number=number, yields=yields, shard=shard))

    def _samples(self, candidates: pa.Table, log: _UnitLog, check: Check) -> Iterator[Sample]:
        """The samples of the valid records, as their media arrive; logs every record."""
        rows = with_media(candidates).to_pylist()
        faces = {row["url"]: row["boxes"] for row in rows if row.get("boxes")}
        stream = functools.partial(self._stream, faces=faces, check=check)
        gathered = gather(rows, stream, self._spec.media.on_lost)
        for row, found in zip(rows, gathered, strict=True):
            columns = {name: row[name] for name in ("row", "id", "url")}
            if isinstance(found, CheckedMedium):
                drop = {"step": found.step, "reason": found.reason, "detail": found.detail}
                log.drops.append({**columns, **drop})
                continue
            try:
                sample = self._sample(found)
                check_sample(sample)
            except Exception as error:  # it concerns this row only
                drop = {"step": "decode", "reason": "bad_record", "detail": str(error)}
                log.drops.append({**columns, **drop})
                continue
            digests = [medium.sha256 for medium in sample.media]
            said = list(map(vars, (*sample.turns, *sample.rejected)))
            key = sample_key(digests, said, self._spec.identity)
            hashes = [medium.phash for medium in found.media]
            log.staged.append({**columns, "key": key, "phash": hashes})
            yield sample

    def _stream(
        self, keys: Sequence[MediumKey], faces: Mapping[str, Sequence[Box]], check: Check
    ) -> Iterator[CheckedMedium]:
        def finish(index: int, fetched: Fetched) -> CheckedMedium:
            boxes = faces.get(keys[index][1], ())
            return check(keys[index], fetched, self._spec.media, self._spec.image, boxes)

        return self._media.stream([url for _, url, _, _ in keys], finish)

    def _check(self, *args: Any) -> CheckedMedium:  # noqa: ANN401 - those of `check_medium`
        with self._deadline():
            return self._spec.check(*args)

    def _check_isolated(
        self,
        isolated: IsolatedCalls,
        *args: Any,  # noqa: ANN401 - those of `check_medium`
    ) -> CheckedMedium:
        try:
            checked: CheckedMedium = isolated(self._spec.check, *args)
        except CrashedError as error:
            return CheckedMedium(step="decode", reason="decoder_crashed", detail=str(error))
        return checked

    def _sample(self, gathered: GatheredRecord) -> Sample:
        row = gathered.row
        scores = {
            name.removeprefix("score."): value
            for name, value in row.items()
            if name.startswith("score.") and value is not None
        }
        for name, value in (pair for medium in gathered.media for pair in medium.scores.items()):
            scores[name] = min(value, scores.get(name, value))  # the lowest of several media
        lineage = {}
        if row["url"]:
            lineage = {"url" if is_url(row["url"]) else "file": row["url"]}
        urls = list(dict.fromkeys(display_url(ref["url"]) for ref in row["media"]))
        if len(urls) > 1:  # a removal request may name any of them
            lineage[MEDIA_URLS] = json.dumps(urls, ensure_ascii=False)
        if row.get("language"):  # detected by a filter; a published one takes precedence
            lineage["language"] = row["language"]
        notes = {k: v for medium in gathered.media for k, v in medium.notes.items()}
        return Sample(
            id=row["id"],
            source=self._spec.source,
            turns=_turns(row["turns"]),
            media=tuple(found.medium for found in gathered.media if found.medium),
            rejected=_turns(row.get("rejected")),
            feedback=_turns(row.get("feedback")),
            scores=scores,
            lineage={**lineage, "row": str(row["row"]), **json.loads(row["lineage"]), **notes},
        )


@dataclass(frozen=True, kw_only=True)
class _UnitLog:
    """What became of a unit's candidates: rows of `STAGED_SCHEMA` and of `DROPS`."""

    staged: list[dict[str, Any]] = field(default_factory=list)
    drops: list[dict[str, Any]] = field(default_factory=list)

    def yields(self, rows: int) -> tuple[StepYield, ...]:
        """How many rows passed each step; a row counts as dropped where its medium failed."""
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
    """The key that duplicates share: digests of their media and, for records, of the text."""
    parts = list(digests)
    if identity == "record":
        text = json.dumps([[turn["role"], turn["text"]] for turn in turns])
        parts.append(hashlib.sha256(text.encode()).hexdigest())
    return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """The input rows of a unit that the global filters keep."""

    unit: int
    rows: Sequence[int]


class FinalShardWriter:
    """Writes the final shard of a unit: its staged samples without those dropped globally.

    If no row is dropped and no score is added, the staged shard becomes the final one.

    Args:
        output: the job's output folder.
    """

    def __init__(self, output: Path) -> None:
        self._state = JobState(output)

    def __call__(self, kept: KeptRows) -> int:
        """Write the shard of a unit; returns the number of its rows."""
        number = kept.unit
        rows = read_table(self._state.keys_path(number))["row"].combine_chunks()
        keep = pc.is_in(rows, pa.array(kept.rows, pa.int64()))
        computed = scores_path(self._state, number)
        change = None
        if computed.exists():
            scores = read_table(computed).filter(keep)

            def change(samples: pa.Table, first: int) -> pa.Table:
                return with_scores(samples, scores.slice(first, samples.num_rows))

        staged, target = self._state.staged_path(number), self._state.output / shard_name(number)
        result = self._state.unit_result(number)
        # A copy of all rows would be the same bytes.
        unchanged = change is None and pc.all(keep).as_py()
        if unchanged and result and result.shard and link_file(staged, target):
            shard = dataclasses.replace(result.shard, path=target.name)
        else:
            shard = copy_rows(staged, target, keep, change)
        self._state.save_final_shard(number, shard)
        return shard.rows
