"""The DeepSpeed engine: optimizer, parameter groups and learning rate schedule."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from model.spec import Stage
from pipeline.compat.deepspeed import load_op
from pipeline.config.deepspeed import ds_config


def start_engine(
    model: nn.Module, settings: Stage, *, steps: int, world: int
) -> deepspeed.DeepSpeedEngine:
    """Initialize DeepSpeed; the optimizer gets only parameters that require a gradient."""
    config = ds_config(settings, world)
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {})
    offloaded = offload.get("device", "none") != "none"
    if offloaded:
        load_op("CPUAdamBuilder")
    adam: Callable[..., Optimizer] = DeepSpeedCPUAdam if offloaded else torch.optim.AdamW
    groups = _parameter_groups(model, settings)
    optimizer = adam(groups, lr=settings.learning_rate, betas=(0.9, 0.999))
    with _fast_initialize():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=partial(_lr_schedule, settings=settings, steps=steps),
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


def _parameter_groups(model: nn.Module, settings: Stage) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate; vectors (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    peft = settings.peft
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.learning_rate
        if peft is not None and peft.learning_rate is not None and peft.parameter_marker in name:
            rate = peft.learning_rate
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def _lr_schedule(optimizer: Optimizer, *, settings: Stage, steps: int) -> LRScheduler:
    warmup = max(1, round(settings.warmup * steps))
    return LambdaLR(optimizer, partial(lr_factor, warmup=warmup, steps=steps))


def follow_schedule(engine: deepspeed.DeepSpeedEngine) -> None:
    """Set the learning rate of the next step as the schedule has it, after loading a checkpoint.

    It differs from the checkpoint's if the run has become longer.
    """
    schedule = engine.lr_scheduler
    for group, peak, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(schedule.last_epoch)


def lr_factor(step: int, *, warmup: int, steps: int) -> float:
    """Return the learning rate as a fraction of its peak: linear warm-up, then cosine decay to 0.

    Loshchilov and Hutter 2017, eq. 5, without restarts. transformers has the same schedule, but
    importing it also imports its Trainer, which takes as long as importing PyTorch.
    """
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
