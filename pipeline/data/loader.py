"""The data loader: the micro-batches of one rank, starting at any step."""

from __future__ import annotations

import atexit
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader

from model.batch import Batch
from pipeline.data.collate import collate, dummy_example, pack
from pipeline.data.dataset import BadSample, CutSample, MultimodalDataset, UnreadableShard
from pipeline.data.encode import Example
from pipeline.data.packing import PackedLayout
from pipeline.data.rollout_prompts import RolloutPrompt
from pipeline.data.sampler import BatchSampler, Bin
from pipeline.signals import stop_signals_blocked


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The batch of one rank and micro-step, and which samples it holds.

    Args:
        batch: padded or packed.
        samples: the number of samples, without dummy examples.
        bad: the skipped samples.
        cut: the samples of whose media the encoders take only a part.
        ids: of the samples, for log lines.
        sources: the index of each sample's data folder, in the order of the samples.
        unreadable_shard: the error of a shard that could not be read; None if there was none.
        prompts: the samples themselves, where the model is to answer them first (GRPO).
    """

    batch: Batch
    samples: int
    bad: tuple[BadSample, ...] = ()
    cut: tuple[CutSample, ...] = ()
    ids: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    unreadable_shard: str | None = None
    prompts: tuple[RolloutPrompt, ...] = ()


@dataclass(frozen=True)
class _Collator:
    """Collates the items of a bin; an object, since it is pickled for data workers.

    Args:
        pad_id: the padding token.
        seq2seq: whether examples have a decoder's target.
        dummy_roles: of the sequences of a dummy example, where examples have several.
        max_samples: of a padded micro-batch, filled up with dummy examples; None to pack.
    """

    pad_id: int
    seq2seq: bool
    dummy_roles: tuple[int, ...]
    max_samples: int | None

    def __call__(self, items: list[Example | BadSample | UnreadableShard]) -> MicroBatch:
        examples = [item for item in items if isinstance(item, Example)]
        samples = len(examples)
        # Every rank must call the model in every micro-step, so that an empty bin gets a dummy.
        missing = (1 if self.max_samples is None else self.max_samples) - samples
        dummy = dummy_example(self.pad_id, seq2seq=self.seq2seq, roles=self.dummy_roles)
        padding = [dummy] * max(0, missing)
        batch = (
            pack(examples + padding)
            if self.max_samples is None
            else collate(examples + padding, pad_id=self.pad_id, side="right")
        )
        errors = (item.reason for item in items if isinstance(item, UnreadableShard))
        return MicroBatch(
            batch=batch,
            samples=samples,
            bad=tuple(item for item in items if isinstance(item, BadSample)),
            cut=tuple(CutSample(id=one.id, reason=one.cut) for one in examples if one.cut),
            ids=tuple(example.id for example in examples),
            sources=tuple(example.source for example in examples),
            unreadable_shard=next(errors, None),
            prompts=tuple(item for item in examples if isinstance(item, RolloutPrompt)),
        )


class _RankBins:
    """This rank's bins in order, computed on demand; counts the micro-steps of each step."""

    def __init__(self, sampler: BatchSampler, steps: Iterable[int], rank: int, ranks: int) -> None:
        self._sampler, self._steps = sampler, steps
        self._rank, self._ranks = rank, ranks
        self.micro_steps: deque[int] = deque()

    def __iter__(self) -> Iterator[Bin]:
        for step in self._steps:
            micro_steps = self._sampler.step(step, self._ranks)
            self.micro_steps.append(len(micro_steps))
            for bins in micro_steps:
                yield bins[self._rank]


def micro_batches(
    dataset: MultimodalDataset,
    sampler: BatchSampler,
    *,
    steps: Iterable[int],
    rank: int,
    ranks: int,
    pad_id: int,
    num_workers: int,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each of the given steps, in order.

    All ranks have the same number in a step. The order does not depend on `num_workers`.
    """
    bins = _RankBins(sampler, steps, rank, ranks)
    layout = sampler.layout
    max_samples = None if isinstance(layout, PackedLayout) else layout.max_samples
    before = set(multiprocessing.active_children())
    loader = DataLoader(
        dataset,
        batch_sampler=bins,
        collate_fn=_Collator(pad_id, dataset.seq2seq, dataset.dummy_roles, max_samples),
        num_workers=num_workers,
        # fork would copy the threads of gloo or NCCL in an unknown state
        multiprocessing_context="spawn" if num_workers else None,
    )
    # Slurm and terminals send signals to every process; the workers leave them to the rank.
    with stop_signals_blocked():
        loaded = iter(loader)
    # A rank that ends with an error would wait for its workers, which do not get its SIGTERM.
    for worker in set(multiprocessing.active_children()) - before:
        atexit.register(worker.kill)
    for first in loaded:
        # The step's number of micro-steps was recorded when its first bin was computed.
        yield [first, *(next(loaded) for _ in range(bins.micro_steps.popleft() - 1))]
