"""Train one stage, from its configuration to a trained run; the step loop is in `loop.py`.

The stages differ in the modules that they train and in their losses, which a preset names:

- `init`, before MM-PT: the pre-training of a Q-Former or a P-Former (survey §2.2). A Q-Former
  learns from pairs of a medium and its caption, by ITC + ITM + ITG, in front of the frozen encoder
  (BLIP-2, Li et al. 2023, §3.2). A P-Former learns from sentences, which any samples have, since
  their media are not read, by contrast, quantization and the frozen backbone's text loss (DLP, Jian
  et al. 2023, §3.1). `pt --init-from RUN` starts from `weights.safetensors` of its checkpoints;
  weights that only this stage needs are in `objective.safetensors`.
- `pt`, MM-PT: align the projectors with the frozen backbone on pairs as `etl/laion.py` writes them
  (survey §3.1): eq. 2, the cross-entropy of the caption; with a reference P-Former (DLP), also the
  distance between the projected tokens and its prompts.
- `sft`, the first part of MM-IT: fine-tune projectors and the backbone's adapters on dialogues as
  `etl/instruct.py` writes them (survey §3.2): eq. 2 over the assistant's turns.
- `rlhf`, the second part of MM-IT: train the adapters on preferences and feedback as
  `etl/preference.py` writes them (survey §3.2): DPO, KTO, DRESS or a reward model; or on answers of
  its own to the questions of any dialogues, judged by rewards: GRPO (`model.spec.rlhf`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.lock import owner_lock
from etl.storage.shards import ShardSet
from model.build import (
    build,
    build_caption_tokenizers,
    build_policy,
    build_reward_model,
    build_text_tokenizer,
    build_tokenizer,
)
from model.freeze import count_parameters, set_trainable
from model.peft.lora import reset_magnitudes
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM
from model.pretraining.build import build_init, is_stage_only, sentence_reader
from model.reward_lm import HEAD, RewardLM
from model.spec.peft import Lora, QLora
from model.spec.rlhf import Dress, Grpo, RewardModel
from model.spec.system import InitStage, RlhfStage
from model.weights import load_trained, names_in
from pipeline.checkpoint.adapters import BASE, adapter_record, base_record, check_adapters
from pipeline.checkpoint.checkpoints import Checkpoints, RetentionPolicy, checkpoint_weights
from pipeline.checkpoint.files import read_manifest, step_of
from pipeline.compat.torch import set_group_timeouts
from pipeline.config.deepspeed import ds_config
from pipeline.config.run_config import RunConfig, accumulation
from pipeline.config.trainer_state import TrainerState
from pipeline.data.dataset import MultimodalDataset
from pipeline.data.encode import SampleEncoder
from pipeline.data.features import FeatureReader
from pipeline.data.generation_targets import GenerationTargetEncoder, earlier_media
from pipeline.data.loader import MicroBatch, micro_batches
from pipeline.data.preferences import PreferenceEncoder, PreferenceTokenizer
from pipeline.data.rollout_prompts import RolloutEncoder, RolloutTokenizer
from pipeline.data.sampler import BatchSampler, build_sampler, sample_tokenizer
from pipeline.data.tokenize import warn_of_other_template
from pipeline.data.worker_status import WorkerStatus
from pipeline.distributed import (
    collective_timeout,
    emulates_bfloat16,
    init_distributed,
    memory_in_use,
    rank_and_world_size,
)
from pipeline.feature_cache.training import open_feature_cache
from pipeline.forecast.forecast import stage_costs, typical_product
from pipeline.forecast.peak_flops import of_this_device
from pipeline.forecast.workload import WorkTotals
from pipeline.run_folder.forecast_check import compare_with_forecast
from pipeline.run_folder.loggers import start_loggers
from pipeline.run_folder.metrics_writer import MetricsWriter, read_validations
from pipeline.run_folder.report import run_report
from pipeline.run_folder.starts import record_end, record_start, recording_failure
from pipeline.signals import STOPPED, StopRequest
from pipeline.train.engine import follow_schedule, start_engine, updates_per_step
from pipeline.train.identity import complete_identity, run_identity, start_lineage
from pipeline.train.judge_reward import JudgeReward
from pipeline.train.loop import LoopSettings, TrainingLoop
from pipeline.train.losses import loss_terms
from pipeline.train.metrics import MetricsAccumulator, source_names
from pipeline.train.reward_models import add_reward_models
from pipeline.train.rewards import load_rewards
from pipeline.train.rollouts import RolloutSettings, with_rollouts
from pipeline.train.validation import (
    Validation,
    ValidationData,
    answer_loss,
    open_validation,
    validation_batches,
)
from pipeline.train.watchdog import PhaseTracker, Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that is opened and checked before the process group is initialized."""

    shards: ShardSet
    validation: ValidationData | None
    tokenizer: PreTrainedTokenizerBase
    sampler: BatchSampler
    steps: int
    initial_weights: Path | None
    checkpoint: Path | None
    checkpoints: Checkpoints


def train_stage(run: RunConfig, resume: str) -> int:
    """Train one stage of a system.

    Args:
        run: the configuration.
        resume: `auto`, `never` or the number of a step.

    Returns:
        The process's exit code: 0 at the end of the run, `STOPPED` after a stop request.

    Raises:
        UserError, SpecError: any mistake of the user's; before a rank waits for another.
    """
    stop = StopRequest()
    _warn_about_random_weights(run)
    if run.settings.precision == "bf16" and emulates_bfloat16():
        log.warning("bf16 is emulated on this CPU, and slow: --precision fp32 takes a fraction")
    inputs = open_inputs(run, resume)
    if resume == "auto" and _is_complete(run, inputs):
        log.info("already complete: %s (step %d of %d)", run.output, inputs.steps, inputs.steps)
        return 0

    rank, _ = rank_and_world_size()
    with run_lock(run) if rank == 0 else nullcontext():
        return _train(run, inputs, stop)


def run_lock(run: RunConfig) -> AbstractContextManager[None]:
    """Hold the run folder against other trainings.

    Raises:
        UserError: another process uses it, or it cannot be written.
    """
    return owner_lock(Path(run.output) / "in-use.json", name=f"--output {run.output}")


def _train(run: RunConfig, inputs: Inputs, stop: StopRequest) -> int:
    """Train from checked inputs; returns the process's exit code."""
    writer = create_run_folder(run)
    memory_before = memory_in_use()
    model = build_model(run, inputs)
    features = open_feature_cache(run, _all_shards(run, inputs), model)
    rank, world = rank_and_world_size()
    write_start(run, inputs, model)
    engine = start_engine(model, run.settings, steps=inputs.steps, world=world)
    set_group_timeouts(collective_timeout(run.stall_seconds))
    state = restore(engine, inputs, writer)

    tracker = PhaseTracker(WorkerStatus(run.num_workers))
    tracker.register_hooks(engine.module)
    encoder = build_encoder(run, inputs.tokenizer, features)
    batches = load_batches(run, inputs, state, tracker.decoding, encoder)
    batches = with_answers(run, inputs, batches, engine.module)
    if rank == 0:
        writer.log_to(start_loggers(run.log_to, Path(run.output), asdict(run), step=state.step))
    loop = TrainingLoop(
        engine=engine,
        settings=loop_settings(run, inputs),
        checkpoints=inputs.checkpoints,
        writer=writer,
        accumulator=make_accumulator(run),
        phases=tracker,
        stop=stop,
        validation=make_validation(run, inputs, state, encoder),
    )
    seconds = run.stall_seconds
    watchdog = Watchdog(tracker, Path(run.output), rank=rank, world=world, seconds=seconds)
    with watchdog, recording_failure(Path(run.output), rank):
        state = loop.run(batches, state)
    writer.close()
    complete = loop.is_complete(state)
    if state.step == 0:
        log.info("stopped before the first step; the same command starts again")
    elif rank == 0:
        totals = loop.accumulator.totals
        write_report(run, inputs, state, totals, complete=complete, memory_before=memory_before)
    return 0 if complete else STOPPED


def _warn_about_random_weights(run: RunConfig) -> None:
    """Warn where a stage builds on an earlier one and no run of that is given."""
    if run.init_from is not None:
        return
    if run.stage == "rlhf":
        log.warning("no --init-from: the policy starts from random weights, not from SFT's")
    elif run.stage == "sft":
        log.warning("no --init-from: the projector starts from random weights, not from MM-PT's")
    elif run.settings.reference is not None:
        log.warning("no --init-from: the reference P-Former has random weights")


def open_inputs(run: RunConfig, resume: str) -> Inputs:
    """Check the whole request and open the data; writes nothing.

    Raises:
        UserError: any mistake in data, options or checkpoints.
    """
    settings = run.settings
    if run.feature_cache is not None and isinstance(settings, RlhfStage) and settings.corrupts:
        raise UserError("--feature-cache: has no features of mDPO's corrupted images; leave it out")
    rank, world = rank_and_world_size()
    accumulation(settings, world)
    ds_config(settings, world)
    folders = [Path(folder) for folder in run.data]
    shards = ShardSet(folders, rank=rank, ranks=world, stamps=Path(run.output))
    tokenizer = build_tokenizer(run.system.model, weights=run.weights)
    if rank == 0:
        warn_of_other_template(run, tokenizer)
    initial = (
        checkpoint_weights(Path(run.init_from), run.init_checkpoint) if run.init_from else None
    )
    if initial is not None:
        _check_initial(run, initial)
    sampler = build_sampler(run, tokenizer)
    steps = min(sampler.steps, run.max_steps or sampler.steps)
    checkpoints = Checkpoints(
        Path(run.output),
        run_identity(run, shards.fingerprint, initial, steps=steps, world=world),
        RetentionPolicy(newest=run.keep_last, every=run.keep_every),
        inherited=initial,
        objective_only=partial(is_stage_only, run.system.model, settings),
        complete=partial(complete_identity, run, sampler, shards.fingerprint),
    )
    return Inputs(
        shards=shards,
        validation=open_validation(run, tokenizer),
        tokenizer=tokenizer,
        sampler=sampler,
        steps=steps,
        initial_weights=initial,
        checkpoint=checkpoints.choose(resume),
        checkpoints=checkpoints,
    )


def _check_initial(run: RunConfig, initial: Path) -> None:
    """Raise UserError for weights that the stage cannot start from."""
    if BASE in read_manifest(initial.parent):
        raise UserError(f"--init-from {run.init_from}: is a reward model, which gives no answers")
    generates = any(name.startswith("outputs.") for name in names_in(initial))
    if generates and run.stage == "rlhf" and not run.settings.samples_answers:
        raise UserError(
            f"--init-from {run.init_from}: generates media, which rlhf trains by GRPO alone, want "
            'rlhf.objective={"kind": "grpo"}'
        )


def _is_complete(run: RunConfig, inputs: Inputs) -> bool:
    """Whether the last step is saved, and its validation was not left out for a stop request."""
    if inputs.checkpoint is None or step_of(inputs.checkpoint) != inputs.steps:
        return False
    return inputs.validation is None or inputs.steps in _validated(run, inputs.validation)


def _validated(run: RunConfig, data: ValidationData) -> list[int]:
    """Return the steps after which a run was validated on these data."""
    return [one["step"] for one in read_validations(Path(run.output), data.identity)]


def create_run_folder(run: RunConfig) -> MetricsWriter:
    """Initialize the process group, and create the run folder with its `config.json`."""
    init_distributed(run.stall_seconds)
    rank, _ = rank_and_world_size()
    folder = Path(run.output)
    if rank == 0:
        run.save(folder)
    dist.barrier()
    return MetricsWriter(folder, rank)


def build_model(run: RunConfig, inputs: Inputs) -> nn.Module:
    """Build the model, load another run's weights if given, and freeze what is not trainable."""
    settings = run.settings
    model = _new_model(run)
    inputs.checkpoints.adapters = adapter_record(run, model)
    if inputs.initial_weights is not None:
        check_adapters(inputs.initial_weights, inputs.checkpoints.adapters)
        load_trained(model, inputs.initial_weights)
        if not any("lora_" in name for name in names_in(inputs.initial_weights)):
            reset_magnitudes(model)
    heads: tuple[str, ...] = ()
    if isinstance(model, RewardLM):
        heads = (f"{HEAD}.*",)
        inputs.checkpoints.base = base_record(run, model)
    elif isinstance(model, PreferenceLM):
        _add_frozen_adapters(run, model)
    names = set_trainable(model, (*settings.trainable, *heads))
    trainable, total = count_parameters(model)
    log.info("%d of %d parameters are trainable (%d tensors)", trainable, total, len(names))
    return model


def _new_model(run: RunConfig) -> nn.Module:
    """Build the model of a run, without weights of an earlier one."""
    settings = run.settings
    if isinstance(settings, InitStage):
        return build_init(run.system.model, settings, weights=run.weights, seed=run.seed)
    if not isinstance(settings, RlhfStage) or isinstance(settings.objective, Dress):
        return build(
            run.system.model,
            settings,
            weights=run.weights,
            seed=run.seed,
            latents_given=run.feature_cache is not None,
        )
    if isinstance(settings.objective, RewardModel):
        return build_reward_model(run.system.model, settings, weights=run.weights, seed=run.seed)
    model = build_policy(run.system.model, settings, weights=run.weights, seed=run.seed)
    if isinstance(settings.objective, Grpo):
        model.temperature = settings.objective.temperature
        model.with_reference = settings.objective.beta > 0
    return model


def _add_frozen_adapters(run: RunConfig, model: PreferenceLM) -> None:
    """Add the reference, a copy of the policy that was just loaded, and the reward models."""
    settings = run.settings
    assert isinstance(settings, RlhfStage)
    assert isinstance(settings.peft, Lora | QLora)
    base = base_record(run, model)
    add_reference(model.backbone, settings.peft)
    if isinstance(settings.objective, Grpo):
        add_reward_models(model, settings.peft, settings.objective.rewards, base)


def write_start(run: RunConfig, inputs: Inputs, model: nn.Module) -> None:
    """Write down that the run was started, before ZeRO partitions the model; rank 0 writes."""
    rank, world = rank_and_world_size()
    step = step_of(inputs.checkpoint) if inputs.checkpoint is not None else 0
    if rank == 0:
        parameters = count_parameters(model)
        lineage = start_lineage(run, inputs.shards.fingerprint, inputs.initial_weights)
        record_start(
            Path(run.output), ranks=world, from_step=step, parameters=parameters, lineage=lineage
        )


def restore(
    engine: deepspeed.DeepSpeedEngine, inputs: Inputs, writer: MetricsWriter
) -> TrainerState:
    """Load the chosen checkpoint, if any; return the progress of the run."""
    state = TrainerState()
    if inputs.checkpoint is not None:
        state = inputs.checkpoints.load(engine, inputs.checkpoint)
        follow_schedule(engine)
        log.info("resuming from %s", inputs.checkpoint)
    writer.rewind(state.step)
    return state


def _all_shards(run: RunConfig, inputs: Inputs) -> ShardSet:
    """Return the data of training and of validation, whose features a cache must hold."""
    if inputs.validation is None:
        return inputs.shards
    folders = [Path(folder) for folder in (*run.data, *run.validation_data)]
    return ShardSet(folders, verify=False)


def with_answers(
    run: RunConfig,
    inputs: Inputs,
    batches: Iterator[list[MicroBatch]],
    model: nn.Module,
) -> Iterator[list[MicroBatch]]:
    """Return the micro-batches, in GRPO with the policy's answers in place of their prompts.

    Raises:
        UserError, SpecError: an unknown reward, or a chat template whose answers end with no token.
    """
    settings = run.settings
    if not isinstance(settings, RlhfStage) or not isinstance(settings.objective, Grpo):
        return batches
    assert isinstance(model, PreferenceLM)
    tokenizer = sample_tokenizer(run, inputs.tokenizer)
    assert isinstance(tokenizer, RolloutTokenizer)
    _, world = rank_and_world_size()
    zero = ds_config(settings, world).get("zero_optimization", {}).get("stage", 0)
    judge = settings.objective.judge
    rollouts = RolloutSettings(
        objective=settings.objective,
        judge=None if judge is None else JudgeReward(judge, Path(run.output)),
        rewards=load_rewards(settings.objective.rewards),
        seed=run.seed,
        end_ids=tokenizer.end_ids,
        pad_id=inputs.tokenizer.pad_token_id,
        synced=zero == 3 and world > 1,
    )
    return with_rollouts(batches, model, inputs.tokenizer, rollouts)


def build_encoder(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase, features: FeatureReader | None
) -> SampleEncoder | PreferenceEncoder | RolloutEncoder:
    """Return the encoder of a stage's samples."""
    settings = run.settings
    encoder = SampleEncoder(
        run.system.model,
        tokenizer,
        prompt=settings.prompt,
        max_tokens=settings.max_tokens,
        text_tokenizer=build_text_tokenizer(run.system.model, weights=run.weights),
        sentences=sentence_reader(run.system.model, settings, weights=run.weights),
        features=features,
        generation_targets=_generation_target_encoder(run, features),
    )
    if not isinstance(settings, RlhfStage):
        return encoder
    if isinstance(settings.objective, Grpo):
        return RolloutEncoder(encoder, settings.objective)
    counter = sample_tokenizer(run, tokenizer)
    assert isinstance(counter, PreferenceTokenizer)
    return PreferenceEncoder(encoder, counter, seed=run.seed)


def load_batches(
    run: RunConfig,
    inputs: Inputs,
    state: TrainerState,
    decoding: WorkerStatus,
    encoder: SampleEncoder | PreferenceEncoder | RolloutEncoder,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each step, from the trainer's state on."""
    rank, world = rank_and_world_size()
    return micro_batches(
        MultimodalDataset(inputs.shards, encoder, decoding),
        inputs.sampler,
        steps=range(state.step, inputs.steps),
        rank=rank,
        ranks=world,
        pad_id=inputs.tokenizer.pad_token_id,
        num_workers=run.num_workers,
    )


def make_validation(
    run: RunConfig,
    inputs: Inputs,
    state: TrainerState,
    encoder: SampleEncoder | PreferenceEncoder | RolloutEncoder,
) -> Validation | None:
    """Return the validation of a run, if it has validation data; a collective."""
    data = inputs.validation
    if data is None:
        return None
    done: list[int | None] = [None]
    if dist.get_rank() == 0:
        done = [state.step if state.step in _validated(run, data) else None]
    dist.broadcast_object_list(done)
    return Validation(
        data,
        validation_batches(run, data, encoder, inputs.tokenizer.pad_token_id),
        loss_terms(run.system.model, run.settings),
        answers=answer_loss(run.settings),
        seed=run.seed,
        every=run.validation_interval,
        last=inputs.steps,
        done=done[0],
    )


def _generation_target_encoder(
    run: RunConfig, features: FeatureReader | None
) -> GenerationTargetEncoder | None:
    """Return the encoder of generation targets, for a stage that trains generation.

    Media that the policy generates itself (GRPO) are targets only once they are generated.
    """
    generation = run.settings.generation
    branches = run.settings.output_branches(run.system.model)
    if generation is None:
        return earlier_media(branches)
    return GenerationTargetEncoder(
        branches,
        build_caption_tokenizers(branches, weights=run.weights),
        generation=generation,
        seed=run.seed,
        features=features,
    )


def loop_settings(run: RunConfig, inputs: Inputs) -> LoopSettings:
    """Return the settings of the step loop."""
    return LoopSettings(
        name=f"{run.system.name} {run.stage}",
        losses=loss_terms(run.system.model, run.settings),
        kinds=run.settings.kinds(run.system.model),
        steps=inputs.steps,
        save_every=run.save_every,
        log_every=run.log_every,
        seed=run.seed,
        max_bad_fraction=run.max_bad_fraction,
        max_nonfinite_steps=run.max_nonfinite_steps,
        updates=updates_per_step(run.settings),
    )


def make_accumulator(run: RunConfig) -> MetricsAccumulator:
    """Return the accumulator of a step's metrics by source and by rank."""
    model, settings = run.system.model, run.settings
    costs = peak = None
    if not isinstance(settings, InitStage):
        costs = stage_costs(model, settings)
        if run.feature_cache is not None:
            costs = costs.with_features()
        device = of_this_device(settings.precision, typical_product(model, settings), measure=False)
        peak = device.peak if device else None
    losses = [term.name for term in loss_terms(model, settings)]
    return MetricsAccumulator(losses, source_names(run.data), settings.kinds(model), costs, peak)


def write_report(
    run: RunConfig,
    inputs: Inputs,
    state: TrainerState,
    totals: WorkTotals,
    *,
    complete: bool,
    memory_before: int,
) -> None:
    """Write forecast against actual, how the run ended, and the report. On rank 0 alone."""
    _, world = rank_and_world_size()
    compare_with_forecast(run, world, totals, memory_before=memory_before)
    record_end(Path(run.output), "complete" if complete else "stopped on request")
    report = run_report(Path(run.output))
    if complete:
        log.info("done: %s, %s", report, inputs.checkpoints.folder.final(state.step))
    else:
        log.info(
            "stopped after step %d of %d, saved; the same command resumes", state.step, inputs.steps
        )
