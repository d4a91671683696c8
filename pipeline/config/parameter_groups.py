"""Optimizer parameter groups: learning rate, weight decay and schedule of each part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn

from model.spec import SpecError, Stage
from model.spec.system import ParameterGroup, Schedule, decay_start


@dataclass(kw_only=True)
class OptimizerGroup:
    """Trainable parameters that share all settings of the optimizer.

    Args:
        label: the pattern that chose them, `peft` for adapters with a rate of their own, else
            `stage`; groups that differ in weight decay or depth alone share it.
        learning_rate: the peak.
        weight_decay: of these parameters.
        betas: AdamW's.
        schedule: after the warm-up.
        warmup: share of the steps.
        decay: share of the steps in which `wsd` decays.
        parameters: in the model's order.
    """

    label: str
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup: float
    decay: float
    parameters: list[Tensor] = field(default_factory=list)


def parameter_groups(model: nn.Module, settings: Stage) -> list[OptimizerGroup]:
    """Return the groups of a stage's trainable parameters, in the model's order.

    Raises:
        SpecError: a group's pattern that matches no trainable parameter.
    """
    groups: dict[tuple[object, ...], OptimizerGroup] = {}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name: _choose(name, settings) for name in trainable}
    for own in settings.groups:
        if own not in chosen.values():
            raise SpecError(f"groups: the pattern {own.pattern!r} matches no trainable parameter")
    depths = _depths(trainable, chosen)
    for name, parameter in trainable.items():
        group = _settings(name, parameter, settings, chosen[name], depths.get(name, 0))
        key = (*(v for k, v in vars(group).items() if k != "parameters"),)
        groups.setdefault(key, group).parameters.append(parameter)
    return list(groups.values())


def _choose(name: str, settings: Stage) -> ParameterGroup | None:
    """Return the first of the stage's groups whose pattern matches."""
    return next((own for own in settings.groups if fnmatchcase(name, own.pattern)), None)


def _settings(
    name: str, parameter: Tensor, settings: Stage, own: ParameterGroup | None, depth: int
) -> OptimizerGroup:
    label, rate, decay = "stage", settings.learning_rate, settings.weight_decay
    peft = settings.peft
    if peft is not None and peft.learning_rate is not None and peft.parameter_marker in name:
        label, rate = "peft", peft.learning_rate
    schedule, warmup, share = settings.schedule, settings.warmup, settings.decay
    betas = settings.betas
    if own is not None:
        label = own.pattern
        rate = rate if own.learning_rate is None else own.learning_rate
        decay = decay if own.weight_decay is None else own.weight_decay
        schedule = own.schedule or schedule
        warmup = warmup if own.warmup is None else own.warmup
        share = share if own.decay is None else own.decay
        betas = betas if own.betas is None else own.betas
        if own.layer_decay is not None:
            rate *= own.layer_decay**depth
    # Of an ndim of its own: under ZeRO-3 a parameter is partitioned only after this.
    decay = decay if parameter.ndim > 1 else 0.0
    return OptimizerGroup(
        label=label,
        learning_rate=rate,
        weight_decay=decay,
        betas=betas,
        schedule=schedule,
        warmup=warmup,
        decay=share,
    )


def _depths(names: Iterable[str], chosen: dict[str, ParameterGroup | None]) -> dict[str, int]:
    """Return, for groups whose rate decays by layer, how many layers follow each parameter's.

    What comes before the first layer (embeddings) is one deeper; what comes after the last, none.
    """
    layers: dict[ParameterGroup, dict[str, int]] = {}
    for name in names:
        own = chosen[name]
        if own is None or own.layer_decay is None:
            continue
        known = layers.setdefault(own, {})
        number = next((int(word) for word in name.split(".") if word.isdecimal()), None)
        known[name] = max(known.values(), default=-1) if number is None else number
    return {
        name: max(known.values()) - number
        for known in layers.values()
        for name, number in known.items()
    }


def lr_factors(groups: Iterable[OptimizerGroup], steps: int) -> list[Callable[[int], float]]:
    """Return each group's learning rate at a step as a fraction of its peak."""
    return [
        partial(
            lr_factor,
            warmup=max(1, round(group.warmup * steps)),
            steps=steps,
            schedule=group.schedule,
            decay=group.decay,
        )
        for group in groups
    ]


def lr_factor(
    step: int, *, warmup: int, steps: int, schedule: Schedule = "cosine", decay: float = 0.1
) -> float:
    """Return the learning rate as a fraction of its peak: linear warm-up, then the schedule.

    The cosine is Loshchilov and Hutter's (2017, eq. 5), without restarts. `wsd` is MiniCPM's (Hu et
    al. 2024, §4.2), which leaves the shape of the decay open, with that of Hägele et al. (2024).
    transformers has the same schedules, but importing them also imports its Trainer, which takes as
    long as importing PyTorch.
    """
    if step < warmup:
        return step / warmup
    decaying = max(1, steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = max(warmup, decay_start(steps, decay))
        if step < start:
            return 1.0
        return 1 - math.sqrt(min(1.0, (step - start) / (steps - start))) if start < steps else 0.0
    if schedule == "linear":
        return max(0.0, (steps - step) / decaying)
    progress = (step - warmup) / decaying
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
