"""Micro-batches of one rank, from any step on; what cannot be used is reported, not skipped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from etl.schema import SampleError
from etl.shards import ShardSet
from model.batch import Batch
from pipeline.data.collate import collate, filler
from pipeline.data.encode import Row, SampleEncoder
from pipeline.data.order import FILLER, Order, Split
from pipeline.watchdog import Decoding


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be used, and why."""

    position: int
    row: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One rank's share of a forward pass: the tensors, and what it stands for.

    Args:
        batch: the padded rows.
        samples: how many of the rows are samples (not fillers, not bad).
        bad: the samples that could not be used; fillers stand in for them.
        ids: of the samples, for people.
    """

    batch: Batch
    samples: int
    bad: tuple[BadSample, ...] = ()
    ids: tuple[str, ...] = ()


class Positions(Dataset[Row | BadSample | None]):
    """The stream of samples by position; decoding happens here, in a worker if there are any."""

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        encoder: SampleEncoder,
        decoding: Decoding | None = None,
    ) -> None:
        self._shards = shards
        self._order = order
        self._encoder = encoder
        self._decoding = decoding or Decoding()
        self.seq2seq = encoder.seq2seq

    def __getitem__(self, position: int) -> Row | BadSample | None:
        """Return the encoded sample, why there is none, or None for a filler."""
        if position == FILLER:
            return None
        row = self._order.row(position)
        self._decoding.write(f"row {row}")
        sample = self._shards[row]
        self._decoding.write(f"{sample.id} (row {row})")
        try:
            return replace(self._encoder.row(sample), id=sample.id)
        except SampleError as error:
            return BadSample(position=position, row=row, id=sample.id, reason=str(error))
        finally:
            self._decoding.write("")


@dataclass(frozen=True)
class _Join:
    """Collation as an object, since it travels to worker processes."""

    pad_id: int
    seq2seq: bool

    def __call__(self, items: list[Row | BadSample | None]) -> MicroBatch:
        blank = filler(self.pad_id, seq2seq=self.seq2seq)
        rows = [item if isinstance(item, Row) else blank for item in items]
        return MicroBatch(
            batch=collate(rows, pad_id=self.pad_id, side="right"),
            samples=sum(isinstance(item, Row) for item in items),
            bad=tuple(item for item in items if isinstance(item, BadSample)),
            ids=tuple(item.id for item in items if isinstance(item, Row)),
        )


@dataclass(frozen=True)
class _Schedule:
    """The positions of one micro-batch after the other, made as they are asked for."""

    split: Split
    steps: range
    end: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from self.split.positions(step, end=self.end)


def _outlive_the_rank(worker: int) -> None:
    """Leave stopping to the rank: Slurm's signals reach every process of a job step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def micro_batches(
    dataset: Positions, order: Order, split: Split, *, steps: range, pad_id: int, workers: int
) -> Iterator[MicroBatch]:
    """Yield this rank's micro-batches of the given steps, in order.

    The order does not depend on `workers`: PyTorch's loader keeps it.
    """
    return iter(
        DataLoader(
            dataset,
            batch_sampler=_Schedule(split, steps=steps, end=order.positions),
            collate_fn=_Join(pad_id, dataset.seq2seq),
            num_workers=workers,
            worker_init_fn=_outlive_the_rank,
            # fork would copy the threads of gloo or NCCL in an unknown state
            multiprocessing_context="spawn" if workers else None,
        )
    )
