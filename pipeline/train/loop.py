"""The step loop, the only one: data, agreement, backward, step, record, checkpoint."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console

from etl.cli import UserError
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.config.trainer_state import TrainerState
from pipeline.data.loader import MicroBatch
from pipeline.distributed import device
from pipeline.run_folder.records import MetricsWriter
from pipeline.signals import STOPPED, StopRequest
from pipeline.train.engine import forget_gradients
from pipeline.train.losses import Objective
from pipeline.train.metrics import MetricsAccumulator
from pipeline.train.progress import ProgressLine
from pipeline.train.step_sync import StepSync, sync_step
from pipeline.train.watchdog import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the loop needs beside the engine.

    Args:
        name: the stage's, for the progress bar.
        objective: what is minimised.
        kinds: of media in the stage (`Stage.kinds`), in the order of the model's slots.
        steps: optimizer steps of the whole run.
        save_every: steps between checkpoints.
        log_every: steps between lines of progress where there is no terminal.
        seed: of the random draws of a step.
        max_bad_fraction: the share of unusable samples past which the run stops.
    """

    name: str
    objective: Objective
    kinds: tuple[str, ...]
    steps: int
    save_every: int
    log_every: int
    seed: int
    max_bad_fraction: float


def train(
    engine: deepspeed.DeepSpeedEngine,
    batches: Iterator[list[MicroBatch]],
    job: Job,
    cursor: TrainerState,
    checkpoints: Checkpoints,
    records: MetricsWriter,
    *,
    stop: StopRequest,
    watch: Watch,
    tally: MetricsAccumulator,
) -> int:
    """Train from `cursor` to the end, or until asked to stop.

    Returns:
        The exit code: 0 at the end, `STOPPED` after a stop that was asked for.

    Raises:
        UserError: too large a share of the samples is unusable, or a shard cannot be read.
    """
    engine.train()
    newest = cursor.step
    with _progress(job, cursor) as progress:
        watch.spent()  # what came before is no step's
        for step in range(cursor.step, job.steps):
            watch.at("data", step=step + 1)
            started = time.perf_counter()
            items = next(batches)
            waited = time.perf_counter() - started
            watch.at("agree", samples=tuple(name for item in items for name in item.ids))
            sync = sync_step(
                items,
                job.kinds,
                job.objective,
                stop=stop.asked,
                writing=checkpoints.standing,
                device=device(),
            )
            checkpoints.turn(sync.writing)
            if sync.lost:
                watch.at("save")
                if cursor.step > newest:
                    checkpoints.begin(engine, cursor)
                checkpoints.finish()
                raise UserError(_what_is_lost(items, cursor))
            if sync.bad:
                records.bad(step + 1, _gather_bad(items))
            seed_step(job.seed, step, dist.get_rank())
            losses = _step(engine, items, sync, job.objective, watch, tally)
            watch.at("record")
            cursor = _after(cursor, sync)
            seconds = time.perf_counter() - started
            figures = _metrics(
                engine, cursor, sync, job.objective, losses, seconds=seconds, waited=waited
            )
            figures |= tally.finish(seconds)
            figures["phase_seconds"] = watch.spent()
            records.step(figures)
            progress.step(figures)
            records.check_bad(cursor, job.max_bad_fraction)
            last = sync.stop or cursor.step == job.steps
            if last or cursor.step % job.save_every == 0:
                watch.at("save")
                checkpoints.begin(engine, cursor)
                newest = cursor.step
                if last:
                    checkpoints.finish()
            if sync.stop and cursor.step < job.steps:
                log.info("stopped on request after step %d of %d; saved", cursor.step, job.steps)
                return STOPPED
    return 0


def _step(
    engine: deepspeed.DeepSpeedEngine,
    items: list[MicroBatch],
    sync: StepSync,
    objective: Objective,
    watch: Watch,
    tally: MetricsAccumulator,
) -> dict[str, float]:
    """Run one optimizer step; return each loss's mean over the global batch.

    DeepSpeed averages gradients over ranks; multiplying by their number turns that into a sum, and
    dividing each loss by its count in the *global* batch makes the gradient the same however the
    batch is split. A step has as many passes as its samples need.
    """
    ranks = dist.get_world_size()
    scales = {
        name: weight * ranks / max(1, sync.counts[name])
        for name, weight in objective.weights.items()
    }
    # A sum and a count for each loss.
    summed = torch.zeros(len(scales), 2, dtype=torch.float64, device=device())
    forget_gradients(engine)
    passes = zip(items, sync.used, sync.encoded, strict=True)
    for number, (item, used, encoded) in enumerate(passes, start=1):
        engine.set_gradient_accumulation_boundary(number == len(items))
        watch.at("forward", samples=item.ids)
        found = objective.losses(engine(item.batch.to(device()), used, encoded))
        scaled = [found[name][0] * scale for name, scale in scales.items()]
        watch.at("backward", samples=item.ids)
        engine.backward(torch.stack(scaled).sum(), scale_wrt_gas=False)
        watch.at("step", samples=item.ids)
        engine.step()
        for place, name in enumerate(scales):
            summed[place, 0] += found[name][0].detach().double()
            summed[place, 1] += found[name][1]
        tally.add(item, found)
    dist.all_reduce(summed)
    losses = {}
    for name, (total, count) in zip(scales, summed.tolist(), strict=True):
        if count != sync.counts[name]:
            raise RuntimeError(f"loss {name}: counted {count:.0f}, told {sync.counts[name]}")
        losses[name] = total / max(1.0, count)
    return losses


def _after(cursor: TrainerState, sync: StepSync) -> TrainerState:
    """Return where a run stands after one more step."""
    return TrainerState(
        step=cursor.step + 1,
        samples=cursor.samples + sync.samples,
        bad=cursor.bad + sync.bad,
        tokens=cursor.tokens + sync.tokens,
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random draw of a step a function of (seed, step, rank), whatever came before."""
    state = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # libraries draw from the global state
    torch.manual_seed(state)


def _what_is_lost(items: list[MicroBatch], cursor: TrainerState) -> str:
    """Return what the first rank that could not read a shard says; a collective."""
    own = next((item.unreadable_shard for item in items if item.unreadable_shard is not None), None)
    everyone: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    told = next(reason for reason in everyone if reason is not None)
    return f"{told}; then the same command goes on after step {cursor.step}"


def _gather_bad(items: list[MicroBatch]) -> list[dict[str, object]]:
    own = [vars(bad) for item in items for bad in item.bad]
    everyone: list[list[dict[str, object]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return [bad for part in everyone for bad in part]


def _metrics(
    engine: deepspeed.DeepSpeedEngine,
    cursor: TrainerState,
    sync: StepSync,
    objective: Objective,
    losses: Mapping[str, float],
    *,
    seconds: float,
    waited: float,
) -> dict[str, object]:
    return {
        "step": cursor.step,
        "samples": cursor.samples,
        "tokens": cursor.tokens,
        "loss": sum(objective.weights[name] * value for name, value in losses.items()),
        "losses": losses,
        "lr": max(engine.get_lr()),
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
        "step_seconds": seconds,
        "tokens_per_second": sync.tokens / seconds,
        "padding_share": 1 - sync.tokens / sync.places,
        "data_wait_share": waited / seconds,
    }


def _progress(job: Job, cursor: TrainerState) -> ProgressLine:
    """Return what rank 0 tells of the run; the other ranks stay silent."""
    console = Console(stderr=True, quiet=dist.get_rank() != 0)
    return ProgressLine(
        job.name, first=cursor.step, total=job.steps, every=job.log_every, console=console
    )
