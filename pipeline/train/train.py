"""From a run's configuration to a trained run: the story of every stage, step by step.

Each stage trains some parts of a preset on the losses that the preset names:

- `init`, before MM-PT: pre-training of its own that a Q-Former or a P-Former needs (survey §2.2).
  Data are pairs of a medium and its caption for the Q-Former, which minimises ITC + ITM + ITG in
  front of the frozen encoder (BLIP-2, Li et al. 2023, §3.2); sentences for the P-Former, which any
  samples are since their media are not read (contrast, quantisation and the frozen backbone's text
  loss; DLP, Jian et al. 2023, §3.1). `weights.safetensors` of its checkpoints is what
  `pt --init-from RUN` takes; what only this stage needs is saved in `objective.safetensors`.
- `pt`, MM-PT: align the projectors with the frozen backbone on pairs as `etl/laion.py` writes them
  (survey §3.1): eq. 2, the cross-entropy of the caption; with a reference P-Former (DLP), also the
  distance between the projected tokens and its prompts.
- `sft`, the first part of MM-IT: fine-tune projectors and the backbone's adapters on dialogues as
  `etl/instruct.py` writes them (survey §3.2): eq. 2 over the assistant's turns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from etl.storage.atomic import file_sha256
from etl.storage.shards import ShardSet
from model.build import (
    build,
    build_caption_tokenizers,
    build_text_tokenizer,
    build_tokenizer,
)
from model.freeze import set_trainable
from model.pretraining.build import build_init, is_stage_only, sentence_reader
from model.spec.system import InitStage
from model.weights import load_trained, names_in
from pipeline.checkpoint.checkpoints import Checkpoints, RetentionPolicy, newest_weights
from pipeline.config.deepspeed import ds_config
from pipeline.config.run_config import RunConfig, accumulation
from pipeline.config.trainer_state import TrainerState
from pipeline.data.dataset import MultimodalDataset
from pipeline.data.encode import SampleEncoder
from pipeline.data.generation_targets import GenerationTargetEncoder
from pipeline.data.loader import MicroBatch, micro_batches
from pipeline.data.sampler import BatchSampler, build_sampler
from pipeline.data.worker_status import WorkerStatus
from pipeline.distributed import memory_now, ranks, start_ranks
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.training import open_feature_cache
from pipeline.forecast.forecast import stage_costs, typical_product
from pipeline.forecast.peak_flops import of_this_device
from pipeline.run_folder.forecast_check import compare_with_forecast
from pipeline.run_folder.loggers import start_loggers
from pipeline.run_folder.records import MetricsWriter
from pipeline.signals import StopRequest
from pipeline.train.engine import start_engine
from pipeline.train.loop import Job, train
from pipeline.train.metrics import MetricsAccumulator, source_names
from pipeline.train.objectives import objective_of
from pipeline.train.watchdog import Watch, Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known before any process group exists; a user's mistake shows up here."""

    shards: ShardSet
    tokenizer: PreTrainedTokenizerBase
    schedule: BatchSampler
    steps: int
    initial: Path | None
    checkpoint: Path | None
    checkpoints: Checkpoints


def train_stage(run: RunConfig, resume: str) -> int:
    """Train one stage from its configuration; returns the process's exit code.

    Everything that can be wrong with a request is looked at before any rank waits for another.

    Raises:
        UserError, SpecError: any mistake of the user's.
    """
    stop = StopRequest()
    _warn_of_random_parts(run)
    inputs = open_inputs(run, resume)
    records = start_run(run)
    memory_before = memory_now()
    model = make_model(run, inputs)
    lookup, recorder = open_feature_cache(run, inputs.shards, model)
    engine = start_engine(model, run.settings, steps=inputs.steps, world=ranks()[1])
    cursor = resume_point(engine, inputs, records)
    watch = Watch(WorkerStatus(run.num_workers))
    watch.follow(engine.module)
    batches = data_from(cursor, run, inputs, watch.decoding, lookup)
    job, tally = make_job(run, inputs), make_accumulator(run)
    rank, world = ranks()
    folder = Path(run.output)
    if rank == 0:
        records.show_in(start_loggers(run.log_to, folder, asdict(run), step=cursor.step))
    watchdog = Watchdog(watch, folder, rank=rank, world=world, seconds=run.stall_seconds)
    with recorder, watchdog:
        code = train(
            engine,
            batches,
            job,
            cursor,
            inputs.checkpoints,
            records,
            stop=stop,
            watch=watch,
            tally=tally,
        )
    records.close()
    if rank == 0:
        # Here, since its charts are matplotlib's, which only the end of a run needs.
        from pipeline.run_folder.report import run_report  # noqa: PLC0415

        compare_with_forecast(run, world, tally.totals, memory_before=memory_before)
        run_report(folder)
    return code


def _warn_of_random_parts(run: RunConfig) -> None:
    """Warn where a stage builds on an earlier one and none is named."""
    if run.init_from is not None:
        return
    if run.stage == "sft":
        log.warning("no --init-from: the projector starts from random weights, not from MM-PT's")
    elif run.settings.reference is not None:
        log.warning("no --init-from: the reference P-Former has random weights")


def open_inputs(run: RunConfig, resume: str) -> Inputs:
    """Check the whole request and open the data; writes nothing.

    Raises:
        UserError: any mistake in data, options or checkpoints.
    """
    settings = run.settings
    rank, world = ranks()
    accumulation(settings, world)
    ds_config(settings, world)
    # One rank reads all bytes to compare checksums; sizes are compared by all.
    shards = ShardSet([Path(folder) for folder in run.data], verify=rank == 0)
    tokenizer = build_tokenizer(run.system.model, weights=run.weights)
    schedule = build_sampler(run, tokenizer)
    steps = min(schedule.steps, run.max_steps or schedule.steps)
    initial = newest_weights(Path(run.init_from)) if run.init_from else None
    identity = _identity(run, shards, initial, steps=steps, world=world)
    inherited = names_in(initial) if initial else ()
    apart = partial(is_stage_only, run.system.model, settings)
    checkpoints = Checkpoints(
        Path(run.output),
        identity,
        RetentionPolicy(newest=run.keep_last, every=run.keep_every),
        inherited,
        apart,
    )
    return Inputs(
        shards=shards,
        tokenizer=tokenizer,
        schedule=schedule,
        steps=steps,
        initial=initial,
        checkpoint=checkpoints.choose(resume),
        checkpoints=checkpoints,
    )


def _identity(
    run: RunConfig, shards: ShardSet, initial: Path | None, *, steps: int, world: int
) -> dict[str, object]:
    """What must be the same for a resumed run to be the same run."""
    return {
        "preset": run.system.name,
        "stage": run.stage,
        "data": shards.fingerprint,
        "seed": run.seed,
        "mix": json.loads(json.dumps(asdict(run.mix))),
        "weights": run.weights,
        "initial weights": file_sha256(initial) if initial else None,
        "steps": steps,
        # Losses that compare samples with each other see those of one pass of all ranks.
        **({"ranks": world} if isinstance(run.settings, InitStage) else {}),
        "model": json.loads(json.dumps(asdict(run.system.model))),
        **{name: json.loads(json.dumps(value)) for name, value in asdict(run.settings).items()},
    }


def start_run(run: RunConfig) -> MetricsWriter:
    """Join the process group and prepare the run folder."""
    start_ranks()
    rank, _ = ranks()
    folder = Path(run.output)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        run.save(folder)
    dist.barrier()
    return MetricsWriter(folder, rank)


def make_model(run: RunConfig, inputs: Inputs) -> nn.Module:
    """Build the model, start it from another run's weights if asked, and freeze what stays."""
    model = _build(run)
    if inputs.initial is not None:
        load_trained(model, inputs.initial)
    trained = set_trainable(model, run.settings.trainable)
    total = sum(parameter.numel() for parameter in model.parameters())
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("%d of %d parameters train (%d tensors)", moving, total, len(trained))
    return model


def _build(run: RunConfig) -> nn.Module:
    if isinstance(run.settings, InitStage):
        return build_init(run.system.model, run.settings, weights=run.weights, seed=run.seed)
    return build(run.system.model, run.settings, weights=run.weights, seed=run.seed)


def resume_point(
    engine: deepspeed.DeepSpeedEngine, inputs: Inputs, records: MetricsWriter
) -> TrainerState:
    """Load the chosen checkpoint, if any, and return where the run stands."""
    cursor = TrainerState()
    if inputs.checkpoint is not None:
        cursor = inputs.checkpoints.load(engine, inputs.checkpoint)
        log.info("goes on from %s", inputs.checkpoint)
    records.rewind(cursor.step)
    return cursor


def data_from(
    cursor: TrainerState,
    run: RunConfig,
    inputs: Inputs,
    decoding: WorkerStatus,
    lookup: CacheReader,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each step from the cursor on."""
    settings = run.settings
    encoder = SampleEncoder(
        run.system.model,
        inputs.tokenizer,
        prompt=settings.prompt,
        max_tokens=settings.max_tokens,
        text_tokenizer=build_text_tokenizer(run.system.model, weights=run.weights),
        sentences=sentence_reader(run.system.model, settings, weights=run.weights),
        features=lookup,
        generation_targets=_drawing(run, lookup),
    )
    rank, world = ranks()
    return micro_batches(
        MultimodalDataset(inputs.shards, encoder, decoding),
        inputs.schedule,
        steps=range(cursor.step, inputs.steps),
        rank=rank,
        ranks=world,
        pad_id=inputs.tokenizer.pad_token_id,
        num_workers=run.num_workers,
    )


def _drawing(run: RunConfig, lookup: CacheReader) -> GenerationTargetEncoder | None:
    """Return what encodes media that come out, for a stage that learns to draw."""
    generation = run.settings.generation
    if generation is None:
        return None
    slots = run.settings.output_branches(run.system.model)
    return GenerationTargetEncoder(
        slots,
        build_caption_tokenizers(slots, weights=run.weights),
        denoises=generation.denoise > 0,
        seed=run.seed,
        features=lookup,
    )


def make_job(run: RunConfig, inputs: Inputs) -> Job:
    """Return what the loop needs to know of a run."""
    return Job(
        name=f"{run.system.name} {run.stage}",
        objective=objective_of(run.system.model, run.settings),
        kinds=run.settings.kinds(run.system.model),
        steps=inputs.steps,
        save_every=run.save_every,
        log_every=run.log_every,
        seed=run.seed,
        max_bad_fraction=run.max_bad_fraction,
    )


def make_accumulator(run: RunConfig) -> MetricsAccumulator:
    """Return what counts a run's figures by source and by rank."""
    model, settings = run.system.model, run.settings
    costs = peak = None
    if not isinstance(settings, InitStage):
        costs = stage_costs(model, settings)
        rate = of_this_device(settings.precision, typical_product(model, settings), measure=False)
        peak = rate.peak if rate else None
    return MetricsAccumulator(source_names(run.data), settings.kinds(model), costs, peak)
