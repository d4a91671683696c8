"""One rank of `checkpoint.py`: saves as this trainer does and as DeepSpeed does, then resumes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import torch.distributed as dist
import tyro

from etl.cli import main, parse
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.files import damage
from pipeline.config.run_config import read_config
from pipeline.config.trainer_state import TrainerState
from pipeline.data.worker_status import WorkerStatus
from pipeline.distributed import ranks
from pipeline.feature_cache.reader import CacheReader
from pipeline.signals import StopRequest
from pipeline.train.engine import start_engine
from pipeline.train.loop import train
from pipeline.train.train import (
    data_from,
    make_accumulator,
    make_job,
    make_model,
    open_inputs,
    resume_point,
    start_run,
)
from pipeline.train.watchdog import Watch


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time checkpoints of a run on this rank."""

    config: tyro.conf.Positional[Path]
    """The run's config.json."""
    told: Path
    """Where rank 0 writes what it measured."""
    saves: int = 3
    """How often each side saves; the medians are told."""
    resume: bool = False
    """Resume the run from its checkpoint, instead of training and saving."""


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the slowest rank needs."""
    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - began


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(args: list[str]) -> None:
    """Measure; all ranks do the same."""
    options = parse(Options, prog="checkpoint_worker", args=args)
    config = read_config(options.config)
    inputs = open_inputs(config, "auto" if options.resume else "never")
    records = start_run(config)
    model = make_model(config, inputs)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = start_engine(model, config.settings, steps=inputs.steps, world=ranks()[1])
    told: dict[str, object] = {"trained": trained, "frozen": frozen}
    if options.resume:
        checkpoint = inputs.checkpoint
        assert checkpoint is not None
        told["check_seconds"] = timed(lambda: damage(checkpoint))
        told["load_seconds"] = timed(lambda: resume_point(engine, inputs, records))
    else:
        watch = Watch(WorkerStatus(0))
        stop = StopRequest()
        job = replace(make_job(config, inputs), save_every=10**9)
        batches = data_from(TrainerState(), config, inputs, watch.decoding, CacheReader())
        tally = make_accumulator(config)
        train(
            engine, batches, job, TrainerState(), inputs.checkpoints, records,
            stop=stop, watch=watch, tally=tally,
        )  # fmt: skip
        told |= ours(engine, inputs.checkpoints, options.saves)
        told |= deepspeed_s(engine, Path(config.output) / "deepspeed", options.saves)
    if dist.get_rank() == 0:
        options.told.write_text(json.dumps(told))


def ours(
    engine: deepspeed.DeepSpeedEngine, checkpoints: Checkpoints, saves: int
) -> dict[str, object]:
    """Save beside training: what a step waits for, and how long it takes until it is there."""
    stalls, wholes = [], []
    for step in range(100, 100 + saves):
        cursor = TrainerState(step=step)
        stalls.append(timed(lambda cursor=cursor: checkpoints.begin(engine, cursor)))
        wholes.append(stalls[-1] + timed(checkpoints.finish))
    folder = checkpoints.folder
    return {
        "stall_seconds": sorted(stalls)[saves // 2],
        "whole_seconds": sorted(wholes)[saves // 2],
        "bytes": size(folder.final(100 + saves - 1)),
    }


def deepspeed_s(engine: deepspeed.DeepSpeedEngine, folder: Path, saves: int) -> dict[str, object]:
    """Save as DeepSpeed does by itself: in the step, frozen weights too."""
    stalls = []
    for number in range(saves):
        stalls.append(
            timed(lambda tag=f"step{number}": engine.save_checkpoint(str(folder), tag=tag))
        )
    found = {"plain_stall_seconds": sorted(stalls)[saves // 2], "plain_bytes": size(folder) / saves}
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main(run)
