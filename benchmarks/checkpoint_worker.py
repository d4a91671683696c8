"""One rank of `checkpoint.py`: saves as this trainer and as DeepSpeed do, then resumes."""

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
from pipeline.checkpoint.files import find_damage
from pipeline.config.run_config import read_config
from pipeline.config.trainer_state import TrainerState
from pipeline.data.worker_status import WorkerStatus
from pipeline.signals import StopRequest
from pipeline.train.engine import start_engine
from pipeline.train.loop import TrainingLoop
from pipeline.train.train import (
    build_encoder,
    build_model,
    create_run_folder,
    load_batches,
    loop_settings,
    make_accumulator,
    open_inputs,
    restore,
)
from pipeline.train.watchdog import PhaseTracker


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time checkpoints of a run on this rank."""

    config: tyro.conf.Positional[Path]
    """The run's config.json."""
    results: Path
    """Where rank 0 writes its measurements."""
    saves: int = 3
    """How often each side saves; the medians are reported."""
    resume: bool = False
    """Resume the run from its checkpoint instead of training and saving."""


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that the slowest rank needs."""
    dist.barrier()
    started = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - started


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(args: list[str]) -> None:
    """Measure on every rank."""
    options = parse(Options, prog="checkpoint_worker", args=args)
    config = read_config(options.config)
    inputs = open_inputs(config, "auto" if options.resume else "never")
    writer = create_run_folder(config)
    model = build_model(config, inputs)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = start_engine(model, config.settings, steps=inputs.steps, world=dist.get_world_size())
    results: dict[str, object] = {"trained": trained, "frozen": frozen}
    if options.resume:
        checkpoint = inputs.checkpoint
        assert checkpoint is not None
        results["check_seconds"] = timed(lambda: find_damage(checkpoint))
        results["load_seconds"] = timed(lambda: restore(engine, inputs, writer))
    else:
        tracker = PhaseTracker(WorkerStatus(0))
        loop = TrainingLoop(
            engine=engine,
            settings=replace(loop_settings(config, inputs), save_every=10**9),
            checkpoints=inputs.checkpoints,
            writer=writer,
            accumulator=make_accumulator(config),
            phases=tracker,
            stop=StopRequest(),
        )
        state = TrainerState()
        loop.run(
            load_batches(
                config,
                inputs,
                state,
                tracker.decoding,
                build_encoder(config, inputs.tokenizer, None),
            ),
            state,
        )
        results |= save_like_mmloom(engine, inputs.checkpoints, options.saves)
        folder = Path(config.output) / "deepspeed"
        results |= save_like_deepspeed(engine, folder, options.saves)
    if dist.get_rank() == 0:
        options.results.write_text(json.dumps(results))


def save_like_mmloom(
    engine: deepspeed.DeepSpeedEngine, checkpoints: Checkpoints, saves: int
) -> dict[str, object]:
    """Save asynchronously: how long a step waits, and the time until the checkpoint is complete."""
    stalls, complete = [], []
    for step in range(100, 100 + saves):
        state = TrainerState(step=step)
        stalls.append(timed(lambda state=state: checkpoints.save(engine, state)))
        complete.append(stalls[-1] + timed(checkpoints.finish))
    folder = checkpoints.folder
    return {
        "stall_seconds": sorted(stalls)[saves // 2],
        "complete_seconds": sorted(complete)[saves // 2],
        "bytes": size(folder.final(100 + saves - 1)),
    }


def save_like_deepspeed(
    engine: deepspeed.DeepSpeedEngine, folder: Path, saves: int
) -> dict[str, object]:
    """Save with DeepSpeed alone: synchronously, frozen weights included."""
    stalls = []
    for number in range(saves):
        stalls.append(
            timed(lambda tag=f"step{number}": engine.save_checkpoint(str(folder), tag=tag))
        )
    results = {
        "deepspeed_stall_seconds": sorted(stalls)[saves // 2],
        "deepspeed_bytes": size(folder) / saves,
    }
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    return results


if __name__ == "__main__":
    main(run)
