"""What the ranks agree on before a step: the collectives contract, in one small all-gather.

Under ZeRO-3 every rank must call every partitioned module equally often. So the ranks exchange,
after truncation and decoding, which kinds of media each micro-batch uses, the counts of its losses,
whether any rank was asked to stop, and the status of the checkpoint that is being written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.data.loader import MicroBatch
from pipeline.train.loss_term import LossTerm
from pipeline.train.losses import count_losses


@dataclass(frozen=True, kw_only=True)
class StepSync:
    """What is the same on all ranks in one step.

    Args:
        used: per micro-batch, the kinds of media, input and output, that any rank has in it.
        counts: by loss, the denominator: its count in the global batch.
        samples, bad: usable and skipped samples of the global batch.
        cut: samples of whose media the encoders take only a part.
        tokens: tokens of the global batch, without padding.
        positions: with padding.
        stop: whether any rank was asked to stop.
        unreadable: whether any rank could not read a shard.
        save_status: the number of ranks still writing a checkpoint, and of those that failed to.
    """

    used: tuple[tuple[str, ...], ...]
    counts: Mapping[str, int]
    samples: int
    bad: int
    cut: int
    tokens: int
    positions: int
    stop: bool
    unreadable: bool
    save_status: SaveStatus


def sync_step(
    batches: Sequence[MicroBatch],
    kinds: Sequence[str],
    losses: Sequence[LossTerm],
    *,
    stop: bool,
    save_status: SaveStatus,
    device: str,
) -> StepSync:
    """Exchange what the micro-batches hold; a collective that returns the same on every rank.

    Args:
        batches: this rank's micro-batches of one step; every rank has equally many.
        kinds: of media in the stage (`Stage.kinds`).
        losses: the stage's loss terms.
        stop: whether this rank was asked to stop.
        save_status: of this rank.
        device: of the tensor that is gathered.
    """
    flags = [int(item.batch.count(kind) > 0) for item in batches for kind in kinds]
    loss_counts = [count_losses(losses, item.batch) for item in batches]
    numbers = [
        sum(item.samples for item in batches),
        sum(len(item.bad) for item in batches),
        sum(int(item.batch.attention_bt.sum()) for item in batches),
        sum(item.batch.ids_bt.numel() for item in batches),
        int(stop),
        sum(item.unreadable_shard is not None for item in batches),
        save_status.busy,
        save_status.failed,
        sum(len(item.cut) for item in batches),
        *(sum(counts[term.name] for counts in loss_counts) for term in losses),
    ]
    own = torch.tensor([*numbers, *flags], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    total = torch.stack(gathered).sum(0).tolist()
    any_rank, width = total[len(numbers) :], len(kinds)
    used = (
        tuple(kind for kind, count in zip(kinds, any_rank[first:], strict=False) if count)
        for first in (number * width for number in range(len(batches)))
    )
    return StepSync(
        used=tuple(used),
        counts={term.name: count for term, count in zip(losses, total[9:], strict=False)},
        samples=total[0],
        bad=total[1],
        cut=total[8],
        tokens=total[2],
        positions=total[3],
        stop=total[4] > 0,
        unreadable=total[5] > 0,
        save_status=SaveStatus(busy=total[6], failed=total[7]),
    )
