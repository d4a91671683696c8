"""Learning rate, weight decay and schedule of each part; the schedules equal transformers' own."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from model.build import build
from model.freeze import set_trainable
from model.presets import system
from model.spec import SpecError, Stage
from model.spec.system import ParameterGroup, Schedule
from pipeline.config.parameter_groups import OptimizerGroup, lr_factor, lr_factors, parameter_groups

ENCODER, PROJECTOR = "inputs.image.encoder.*", "inputs.image.projector.*"


@pytest.mark.parametrize(("warmup", "steps"), [(1, 16), (3, 50), (10, 7), (1, 1)])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_factor_is_transformers_own(schedule: Schedule, warmup: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, steps),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "wsd": lambda: get_wsd_schedule(
            optimizer,
            warmup,
            num_decay_steps=max(0, min(round(0.3 * steps), steps - warmup)),
            num_training_steps=max(warmup, steps),
            decay_type="1-sqrt",
        ),
    }[schedule]()
    assert isinstance(theirs, LambdaLR)
    (expected,) = theirs.lr_lambdas
    for step in range(steps + 2):
        found = lr_factor(step, warmup=warmup, steps=steps, schedule=schedule, decay=0.3)
        assert found == expected(step)


def test_a_longer_run_has_the_same_stable_phase() -> None:
    short, long = (
        [lr_factor(step, warmup=3, steps=steps, schedule="wsd", decay=0.2) for step in range(steps)]
        for steps in (20, 40)
    )
    assert short[:17] == long[:17]
    assert set(long[3:33]) == {1.0}
    assert all(later < earlier for earlier, later in pairwise(long[32:]))


def digits(**changes: object) -> tuple[nn.Module, Stage]:
    """Return the digits model, and its SFT with the encoder trainable, too."""
    stage = system("digits").stage("sft")
    stage = replace(stage, trainable=(*stage.trainable, ENCODER), **changes)
    model = build(system("digits").model, stage, weights="random", seed=0)
    set_trainable(model, stage.trainable)
    return model, stage


def named(model: nn.Module, groups: list[OptimizerGroup]) -> dict[str, OptimizerGroup]:
    """Return the group of each parameter, by its name; each is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(one)]: group for group in groups for one in group.parameters}
    assert len(found) == sum(len(group.parameters) for group in groups)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    return found


def test_each_part_has_its_own_settings() -> None:
    encoder = ParameterGroup(
        pattern=ENCODER, learning_rate=1e-5, weight_decay=0.2, warmup=0.5, betas=(0.9, 0.98)
    )
    projector = ParameterGroup(pattern=PROJECTOR, schedule="constant")
    model, stage = digits(weight_decay=0.1, groups=(encoder, projector))
    found = named(model, groups := parameter_groups(model, stage))
    for name, group in found.items():
        vector = name.endswith(("bias", "class_embedding")) or "norm" in name or "layrnorm" in name
        if name.startswith("inputs.image.encoder"):
            assert (group.label, group.learning_rate, group.warmup) == (ENCODER, 1e-5, 0.5)
            assert group.weight_decay == (0.0 if vector else 0.2), name
            assert group.betas == (0.9, 0.98)
        elif name.startswith("inputs.image.projector"):
            assert (group.label, group.learning_rate) == (PROJECTOR, stage.learning_rate)
            assert group.schedule == "constant"
        else:
            assert (group.label, group.weight_decay, group.schedule) == ("stage", 0.1, "cosine")
            assert group.betas == (0.9, 0.999)
    factors = {g.label: f for g, f in zip(groups, lr_factors(groups, 100), strict=True)}
    assert factors[ENCODER](25) == 0.5
    assert factors[PROJECTOR](99) == 1.0
    assert factors["stage"](99) < 0.01


def test_adapters_keep_the_rate_of_their_own_unless_a_group_names_another() -> None:
    stage = system("digits").stage("sft")
    assert stage.peft is not None
    peft = replace(stage.peft, learning_rate=5e-4)
    query = ParameterGroup(pattern="backbone.*q_proj*", learning_rate=7e-4)
    model, settings = digits(peft=peft, groups=(query,))
    for name, group in named(model, parameter_groups(model, settings)).items():
        if "q_proj" in name and name.startswith("backbone"):
            assert (group.label, group.learning_rate) == (query.pattern, 7e-4)
        elif "lora" in name:
            assert (group.label, group.learning_rate) == ("peft", 5e-4)


def test_the_rate_of_deeper_layers_decays() -> None:
    own = ParameterGroup(pattern=ENCODER, learning_rate=1.0, layer_decay=0.5)
    model, stage = digits(groups=(own,))
    found = named(model, parameter_groups(model, stage))
    layers = system("digits").model.inputs[0].encoder.layers
    for name, group in found.items():
        if ".layers." in name and name.startswith("inputs.image.encoder"):
            layer = int(name.split(".layers.")[1].split(".")[0])
            assert group.learning_rate == 0.5 ** (layers - 1 - layer), name
        elif "embedding" in name:
            assert group.learning_rate == 0.5**layers, name


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    model, stage = digits(groups=(ParameterGroup(pattern="inputs.image.encodr.*"),))
    with pytest.raises(SpecError, match=r"'inputs\.image\.encodr\.\*' matches no trainable"):
        parameter_groups(model, stage)
