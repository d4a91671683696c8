"""What the ranks agree on before a step: the collectives contract in one small all-gather.

Under ZeRO-3 every rank must call every partitioned module equally often. So the ranks tell each
other, after truncation and decoding, which media each micro-batch uses, what its losses will
count, whether anyone was asked to stop, and how far each is with the checkpoint it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.data.loader import MicroBatch
from pipeline.train.losses import Objective


@dataclass(frozen=True, kw_only=True)
class StepSync:
    """What holds for all ranks in one step.

    Args:
        used: per micro-batch, the kinds of media, going in or coming out, that any rank has in it.
        encoded: those of them of which any rank has one to encode: its features, or its text's
            embedding, are not known.
        counts: of the global batch, by loss: what each loss's sum is divided by.
        samples, bad: usable and unusable samples of the global batch.
        tokens: tokens of the global batch without padding.
        places: tokens with padding.
        stop: whether any rank was asked to stop.
        lost: whether any rank could not read a shard.
        writing: how many ranks are at a checkpoint still, and how many could not write it.
    """

    used: tuple[tuple[str, ...], ...]
    encoded: tuple[tuple[str, ...], ...]
    counts: Mapping[str, int]
    samples: int
    bad: int
    tokens: int
    places: int
    stop: bool
    lost: bool
    writing: SaveStatus


def sync_step(
    batches: Sequence[MicroBatch],
    kinds: Sequence[str],
    objective: Objective,
    *,
    stop: bool,
    writing: SaveStatus,
    device: str,
) -> StepSync:
    """Exchange what this rank's micro-batches hold; every rank returns the same.

    Args:
        batches: this rank's micro-batches of one step; every rank has equally many.
        kinds: of media in the stage (`Stage.kinds`), in the order of the model's slots.
        objective: the stage's; tells what its losses count.
        stop: whether this rank was asked to stop.
        writing: how far this rank is with the checkpoint that it writes.
        device: where the collective's tensor must live.
    """
    usage = [
        *([item.batch.count(kind)[0] > 0 for kind in kinds] for item in batches),
        *([item.batch.count(kind)[1] > 0 for kind in kinds] for item in batches),
    ]
    counted = [objective.counts(item.batch) for item in batches]
    names = list(objective.weights)
    counts = [
        sum(item.samples for item in batches),
        sum(len(item.bad) for item in batches),
        sum(int(item.batch.attention_bt.sum()) for item in batches),
        sum(item.batch.ids_bt.numel() for item in batches),
        int(stop),
        sum(item.unreadable_shard is not None for item in batches),
        writing.busy,
        writing.failed,
        *(sum(own[name] for own in counted) for name in names),
    ]
    own = torch.tensor([*counts, *(int(u) for row in usage for u in row)], device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    total = torch.stack(everyone).sum(0).tolist()
    flags, width = total[len(counts) :], len(kinds)
    told = [
        tuple(kind for kind, count in zip(kinds, flags[first:], strict=False) if count)
        for first in range(0, len(flags), width)
    ]
    return StepSync(
        used=tuple(told[: len(batches)]),
        encoded=tuple(told[len(batches) :]),
        counts=dict(zip(names, total[8:], strict=False)),
        samples=total[0],
        bad=total[1],
        tokens=total[2],
        places=total[3],
        stop=total[4] > 0,
        lost=total[5] > 0,
        writing=SaveStatus(busy=total[6], failed=total[7]),
    )
