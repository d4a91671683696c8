"""Micro-batches of one rank, from any step on; what cannot be used is reported, not skipped."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.batch import Batch
from pipeline.data.collate import collate, dummy_example, pack
from pipeline.data.encode import Example, SampleEncoder
from pipeline.data.packing import PackedLayout
from pipeline.data.sampler import BatchSampler, Bin, SampleRef
from pipeline.data.tokenize import TokenizedSample
from pipeline.data.worker_status import WorkerStatus


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be used, and why."""

    position: int
    row: int
    id: str
    reason: str


Begun = tuple[Sample, TokenizedSample | SampleError | None]
"""A sample, and its text as it is laid out, or why it cannot be used; see `SampleEncoder.draft`."""


@dataclass(frozen=True)
class UnreadableShard:
    """A place whose shard cannot be read any more: no sample's fault, so the run must end."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One rank's share of a forward pass: the tensors, and what it stands for.

    Args:
        batch: the padded rows, or the packed one.
        samples: how many samples it holds.
        bad: the samples that could not be used.
        ids: of the samples, for people.
        sources: the number of each sample's data folder, in the order of the samples.
        lost: what is wrong with a shard that could not be read; None if all could.
    """

    batch: Batch
    samples: int
    bad: tuple[BadSample, ...] = ()
    ids: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    lost: str | None = None


class MultimodalDataset(Dataset[Example | BadSample | UnreadableShard]):
    """The samples by place; decoding happens here, in a worker if there are any."""

    def __init__(
        self, shards: ShardSet, encoder: SampleEncoder, decoding: WorkerStatus | None = None
    ) -> None:
        self._shards = shards
        self._encoder = encoder
        self._decoding = decoding
        self.seq2seq = encoder.seq2seq

    def __getitem__(self, place: SampleRef) -> Example | BadSample | UnreadableShard:
        """Return the encoded sample, or why there is none."""
        return self.__getitems__([place])[0]

    def __getitems__(
        self, places: Sequence[SampleRef]
    ) -> list[Example | BadSample | UnreadableShard]:
        """Return the encoded samples of a bin, each or why there is none; PyTorch asks for these.

        All texts come before all media: with a picture decoded in between, nothing of the tokenizer
        is left in the processor's caches, and a text takes three times as long.
        """
        begun = [self._begin(place) for place in places]
        rows = [self._finish(*parts) for parts in zip(places, begun, strict=True)]
        self._note("")
        return rows

    def _begin(self, place: SampleRef) -> Begun | UnreadableShard:
        """Return a sample, and its text as it is laid out or why it cannot be used."""
        self._note(f"row {place.row}")
        try:
            sample = self._shards[place.row]
        except UserError as error:
            return UnreadableShard(str(error))
        if place.fault is not None:
            return sample, SampleError(place.fault)
        try:
            return sample, self._encoder.draft(sample)
        except SampleError as error:
            return sample, error

    def _finish(
        self, place: SampleRef, begun: Begun | UnreadableShard
    ) -> Example | BadSample | UnreadableShard:
        """Decode a sample's media."""
        if isinstance(begun, UnreadableShard):
            return begun
        sample, draft = begun
        self._note(f"{sample.id} (row {place.row})")
        try:
            if isinstance(draft, SampleError):
                raise draft
            row = self._encoder.row(sample, draft, position=place.position)
        except SampleError as error:
            return BadSample(
                position=place.position, row=place.row, id=sample.id, reason=str(error)
            )
        return replace(row, id=sample.id, source=self._shards.folder(place.row))

    def _note(self, text: str) -> None:
        if self._decoding is not None:
            self._decoding.write(text)


@dataclass(frozen=True)
class _Join:
    """Collation as an object, since it travels to worker processes.

    Args:
        pad_id: what stands where there is no token.
        seq2seq: whether rows have a decoder's side.
        most: rows of a padded micro-batch, fillers included; None packs them.
    """

    pad_id: int
    seq2seq: bool
    most: int | None

    def __call__(self, items: list[Example | BadSample | UnreadableShard]) -> MicroBatch:
        rows = [item for item in items if isinstance(item, Example)]
        samples = len(rows)
        # An empty bin takes part in its pass with one token that is no target.
        missing = (1 if self.most is None else self.most) - samples
        rows += [dummy_example(self.pad_id, seq2seq=self.seq2seq)] * max(0, missing)
        padded = self.most is not None
        return MicroBatch(
            batch=collate(rows, pad_id=self.pad_id, side="right") if padded else pack(rows),
            samples=samples,
            bad=tuple(item for item in items if isinstance(item, BadSample)),
            ids=tuple(item.id for item in items if isinstance(item, Example)),
            sources=tuple(item.source for item in items if isinstance(item, Example)),
            lost=next((item.reason for item in items if isinstance(item, UnreadableShard)), None),
        )


class _Bins:
    """This rank's bins in order, made as they are asked for; remembers the passes of each step."""

    def __init__(self, schedule: BatchSampler, steps: range, rank: int, ranks: int) -> None:
        self._schedule, self._steps = schedule, steps
        self._rank, self._ranks = rank, ranks
        self.passes: deque[int] = deque()

    def __iter__(self) -> Iterator[Bin]:
        for step in self._steps:
            turns = self._schedule.step(step, self._ranks)
            self.passes.append(len(turns))
            for turn in turns:
                yield turn[self._rank]


def _leave_stopping_to_the_rank(worker: int) -> None:
    """Ignore what Slurm sends to every process of a job step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def micro_batches(
    samples: MultimodalDataset,
    schedule: BatchSampler,
    *,
    steps: range,
    rank: int,
    ranks: int,
    pad_id: int,
    workers: int,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each of the given steps, in order.

    All ranks have equally many in a step. The order does not depend on `workers`: PyTorch's
    loader keeps it.
    """
    bins = _Bins(schedule, steps, rank, ranks)
    layout = schedule.layout
    most = None if isinstance(layout, PackedLayout) else layout.most
    before = set(multiprocessing.active_children())
    loaded = iter(
        DataLoader(
            samples,
            batch_sampler=bins,
            collate_fn=_Join(pad_id, samples.seq2seq, most),
            num_workers=workers,
            worker_init_fn=_leave_stopping_to_the_rank,
            # fork would copy the threads of gloo or NCCL in an unknown state
            multiprocessing_context="spawn" if workers else None,
        )
    )
    # A rank that ends with an error would wait for them: they ignore its SIGTERM.
    for worker in set(multiprocessing.active_children()) - before:
        atexit.register(worker.kill)
    for first in loaded:
        # How many there are was told when the step's first bin was made.
        yield [first, *(next(loaded) for _ in range(bins.passes.popleft() - 1))]
