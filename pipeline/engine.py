"""DeepSpeed: the process group, the engine's configuration and the engine itself."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from etl.command import UserError
from model.spec import Stage
from pipeline.config import REPOSITORY, accumulation
from pipeline.ops import load_op

_GATHERED = 50_000_000
"""Elements of parameters that are whole at a time while they are saved."""


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start_ranks() -> None:
    """Join the process group; without a launcher this process is the only rank."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    accelerator = get_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        # Ranks on one machine would otherwise each start a thread per core and stand in each
        # other's way. A fixed number also keeps sums in the same order from run to run.
        local_ranks = int(_first_set("LOCAL_WORLD_SIZE", "LOCAL_SIZE") or "1")
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
        load_op("ShareMemCommBuilder")
    else:
        accelerator.set_device(local_rank)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has renamed; nothing a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.init_distributed(verbose=False)


def _first_set(*names: str) -> str | None:
    """Return the first of these variables that is set; launchers differ in what they call it."""
    return next((os.environ[name] for name in names if name in os.environ), None)


def device() -> str:
    """Return the name of this rank's device."""
    name: str = get_accelerator().current_device_name()
    return name


def ds_config(settings: Stage, world: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the named file, and what a run decides filled in.

    Raises:
        UserError: no such file, no JSON, or a field that the pipeline fills in itself.
    """
    path = ds_config_file(settings.ds_config)
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {error}") from None
    filled = {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        # The loop says where a step ends and scales the losses; DeepSpeed only has to know whether
        # gradients add up, which packed passes may do any number of times.
        "gradient_accumulation_steps": max(2, accumulation(settings, world)),
        "gradient_clipping": 1.0,
        "bf16": {"enabled": settings.precision == "bf16"},
    }
    zero = config.get("zero_optimization", {}).get("stage", 0)
    if settings.peft is not None and not settings.peft.zero3 and zero == 3:
        raise UserError(
            f"ds_config {settings.ds_config!r}: {settings.peft.kind!r} keeps weights that ZeRO-3 "
            "cannot partition; want zero2"
        )
    for name in (*filled, "train_batch_size", "optimizer", "scheduler"):
        if name in config:
            raise UserError(f"{path}: leave {name!r} to the preset or the command line")
    return config | filled


def ds_config_file(name: str) -> Path:
    """Return the path of a configuration given by name or path."""
    folder = REPOSITORY / "ds_configs"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise UserError(f"ds_config {name!r}: no such file; want one of {known}, or a path")
    return path


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
    """Set to zero what ZeRO-3 has kept of the last step's gradients; before a step's first pass.

    DeepSpeed overwrites a weight's gradient in the first pass of a step and adds to it in the
    others (`partition_grads`, whatever `zero_grad` may suggest). A weight that has none in that
    pass, since no rank has a medium of its kind there, would keep the one of an earlier step and be
    moved by it once more.
    """
    kept = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if kept is None:  # not ZeRO-3
        return
    kept.zero_()
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
        if peft is not None and peft.learning_rate is not None and peft.marks in name:
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


def gathered(parameters: list[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Yield whole parameters one by one, on every rank; under ZeRO-3 each holds only a part.

    What is wanted of one must be copied before the next is asked for. They are gathered some at a
    time: adapters are many and small, and each collective takes its while.
    """
    for some in _by_size(parameters):
        divided = [parameter for _, parameter in some if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(divided, enabled=bool(divided)):
            for name, parameter in some:
                yield name, parameter.detach()


def _by_size(
    parameters: list[tuple[str, nn.Parameter]],
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Yield parameters in groups of at most `_GATHERED` elements, or of one that is larger."""
    group: list[tuple[str, nn.Parameter]] = []
    held = 0
    for name, parameter in parameters:
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        if group and held + size > _GATHERED:
            yield group
            group, held = [], 0
        group.append((name, parameter))
        held += size
    if group:
        yield group
