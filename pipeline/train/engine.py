"""DeepSpeed's engine: the optimizer, its parameter groups and the learning rate schedule."""

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
from pipeline.compat.deepspeed_ops import load_op
from pipeline.config.deepspeed import ds_config


def start_engine(
    model: nn.Module, settings: Stage, *, steps: int, world: int
) -> deepspeed.DeepSpeedEngine:
    """Hand the model to DeepSpeed; only what requires a gradient gets an optimizer."""
    config = ds_config(settings, world)
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {})
    on_host = offload.get("device", "none") != "none"
    if on_host:
        load_op("CPUAdamBuilder")
    make: Callable[..., Optimizer] = DeepSpeedCPUAdam if on_host else torch.optim.AdamW
    optimizer = make(_groups(model, settings), lr=settings.learning_rate, betas=(0.9, 0.999))
    with _quick_start():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=partial(_schedule, settings=settings, steps=steps),
            config=config,
        )
    return engine


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """Spare DeepSpeed's start what nobody sees; for a small model that is half of it.

    It formats all weights for a line that it does not print, and has Python look through
    everything that was ever imported for garbage.
    """
    gc.freeze()
    torch.set_printoptions(threshold=0, edgeitems=0)
    try:
        yield
    finally:
        torch.set_printoptions(profile="default")


def forget_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """Zero the gradients that ZeRO-3 still holds from the last step; call before a step begins.

    DeepSpeed overwrites a weight's gradient in the first pass of a step and adds to it in the
    others (`partition_grads`, whatever `zero_grad` may suggest). A weight without a gradient in
    that pass, because no rank has a medium of its kind there, would keep the one of an earlier step
    and be updated by it once more.
    """
    buffer = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if buffer is None:  # not ZeRO-3
        return
    buffer.zero_()
    for master in engine.optimizer.fp32_partitioned_groups_flat:
        if master.grad is not None:  # on the host, of an offloaded optimizer
            master.grad.zero_()


def _groups(model: nn.Module, settings: Stage) -> list[dict[str, Any]]:
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


def _schedule(optimizer: Optimizer, *, settings: Stage, steps: int) -> LRScheduler:
    warm = max(1, round(settings.warmup * steps))
    return LambdaLR(optimizer, partial(rate_share, warm=warm, steps=steps))


def rate_share(step: int, *, warm: int, steps: int) -> float:
    """Return the share of its peak that the learning rate has: up linearly, then down a cosine.

    Loshchilov and Hutter 2017, eq. 5, without restarts. transformers has the same; to import it
    takes as long as to import PyTorch, since it brings its trainer along.
    """
    if step < warm:
        return step / warm
    progress = (step - warm) / max(1, steps - warm)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
