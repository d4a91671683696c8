"""The DeepSpeed engine: optimizer and learning rate schedules of its parameter groups."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from model.spec import Stage
from model.spec.rlhf import Grpo
from model.spec.system import RlhfStage
from pipeline.compat.deepspeed import load_op
from pipeline.config.deepspeed import ds_config
from pipeline.config.parameter_groups import OptimizerGroup, lr_factors, parameter_groups


def start_engine(
    model: nn.Module, settings: Stage, *, steps: int, world: int
) -> deepspeed.DeepSpeedEngine:
    """Initialize DeepSpeed; the optimizer gets only parameters that require a gradient.

    The learning rate is that of the step: all updates of a step have the same.
    """
    config = ds_config(settings, world)
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {})
    offloaded = offload.get("device", "none") != "none"
    if offloaded:
        load_op("CPUAdamBuilder")
    adam: Callable[..., Optimizer] = DeepSpeedCPUAdam if offloaded else torch.optim.AdamW
    groups = parameter_groups(model, settings)
    options = [
        {
            "params": group.parameters,
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
            "betas": group.betas,
            "label": group.label,
        }
        for group in groups
    ]
    optimizer = adam(options, lr=settings.learning_rate, betas=settings.betas)
    with _fast_initialize():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=partial(
                _lr_schedule, groups=groups, steps=steps, updates=updates_per_step(settings)
            ),
            config=config,
        )
    return engine


@contextlib.contextmanager
def _fast_initialize() -> Iterator[None]:
    """Speed up DeepSpeed's initialization; for a small model this halves its time.

    DeepSpeed formats all weights for a log line that is not printed, and runs Python's garbage
    collector over every imported object.
    """
    gc.freeze()
    torch.set_printoptions(threshold=0, edgeitems=0)
    try:
        yield
    finally:
        torch.set_printoptions(profile="default")


def learning_rates(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return the current learning rate of each part, by its label; the largest of its groups."""
    rates: dict[str, float] = {}
    for group in engine.optimizer.param_groups:
        rates[group["label"]] = max(group["lr"], rates.get(group["label"], 0.0))
    return rates


def _lr_schedule(
    optimizer: Optimizer, *, groups: Sequence[OptimizerGroup], steps: int, updates: int
) -> LRScheduler:
    def of_update(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda update: factor(update // updates)

    return LambdaLR(optimizer, [of_update(factor) for factor in lr_factors(groups, steps)])


def updates_per_step(settings: Stage) -> int:
    """Return how many optimizer updates a step of a stage has."""
    if isinstance(settings, RlhfStage) and isinstance(settings.objective, Grpo):
        return settings.objective.updates
    return 1


def follow_schedule(engine: deepspeed.DeepSpeedEngine) -> None:
    """Set the learning rate of the next step as the schedule has it, after loading a checkpoint.

    It differs from the checkpoint's if the run has become longer.
    """
    schedule = engine.lr_scheduler
    for group, peak, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(schedule.last_epoch)
