"""The samples of a step of a run: who had them, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.storage.lineage import urls_of
from etl.storage.shards import ShardSet
from model.build import build_tokenizer
from pipeline.data.sampler import SampleRef, build_sampler
from pipeline.lineage.history import History, check_data
from pipeline.run_folder.metrics_writer import read_metrics, skipped_positions


@dataclass(frozen=True, kw_only=True)
class TracedSample:
    """A sample of a step.

    Args:
        rank, micro_step: who had it and when, counted from 0.
        position: in the stream of samples.
        id, source: of the sample.
        folder, shard, row: the data folder, the shard's file in it, and the row of that file.
        urls: of the sample's media and of the page that it was on.
        media: kind and sha256 of each medium.
        scores, lineage: columns of the shard.
        skip_reason: why it was not trained on; empty if it was.
    """

    rank: int
    micro_step: int
    position: int
    id: str
    source: str
    folder: str
    shard: str
    row: int
    urls: Sequence[str]
    media: Sequence[Mapping[str, str]]
    scores: Mapping[str, float]
    lineage: Mapping[str, str]
    skip_reason: str


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """A step of a run, traced back to its samples.

    Args:
        run: the run folder.
        step: counted from 1.
        ranks: their number.
        applied: whether it changed the weights: not if loss or gradient was not finite; None if
            the metrics do not say.
        samples: by micro-step, then rank.
    """

    run: str
    step: int
    ranks: int
    applied: bool | None
    samples: Sequence[TracedSample]


def trace_step(history: History, step: int) -> TracedStep:
    """Return the samples of a step, from the plan that training has used; reads no media.

    Raises:
        UserError, SpecError: no such step, or data that are not what they were.
    """
    part = history.part(step)
    folders = [Path(folder) for folder in part.run.data]
    shards = ShardSet(folders, verify=False)
    check_data(history, shards)
    sampler = build_sampler(
        part.run, build_tokenizer(part.run.system.model, weights=part.run.weights)
    )
    skipped = skipped_positions(history.folder)
    samples = [
        _traced(shards, ref, rank, micro_step, skipped)
        for micro_step, bins in enumerate(sampler.step(step - 1, part.ranks))
        for rank, refs in enumerate(bins)
        for ref in refs
    ]
    return TracedStep(
        run=str(history.folder),
        step=step,
        ranks=part.ranks,
        applied=_applied(history, step),
        samples=samples,
    )


def _traced(
    shards: ShardSet, ref: SampleRef, rank: int, micro_step: int, skipped: Mapping[int, str]
) -> TracedSample:
    sample = shards[ref.row]
    path, row = shards.location(ref.row)
    return TracedSample(
        rank=rank,
        micro_step=micro_step,
        position=ref.position,
        id=sample.id,
        source=sample.source,
        folder=str(path.parent),
        shard=path.name,
        row=row,
        urls=urls_of(sample.lineage),
        media=[{"kind": medium.kind, "sha256": medium.sha256} for medium in sample.media],
        scores=sample.scores,
        lineage=sample.lineage,
        skip_reason=skipped.get(ref.position, ref.skip_reason or ""),
    )


def _applied(history: History, step: int) -> bool | None:
    skipped_steps = dict(_skipped_steps(history))
    if step not in skipped_steps:
        return None
    return skipped_steps[step] == skipped_steps.get(step - 1, 0)


def _skipped_steps(history: History) -> Iterator[tuple[int, Any]]:
    for entry in read_metrics(history.folder):
        yield entry["step"], entry.get("skipped_steps", 0)
