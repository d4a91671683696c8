"""Freezing: exactly the matching parameters are trainable; unmatched patterns are errors."""

import pytest

from model.build import build
from model.freeze import set_trainable
from model.spec import SpecError

PROJECTOR = [
    f"inputs.image.projector.layers.{layer}.{kind}"
    for layer in (0, 2)
    for kind in ("weight", "bias")
]


def trainable(model):
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def test_pt_trains_the_projector_and_nothing_else(model, digits):
    assert set_trainable(model, digits.pt.trainable) == PROJECTOR
    assert trainable(model) == PROJECTOR


def test_sft_trains_the_projector_and_the_adapters(digits):
    model = build(digits.model, digits.sft, weights="random")
    names = set_trainable(model, digits.sft.trainable)
    assert names == trainable(model)
    layers, targets = digits.model.backbone.layers, digits.sft.peft.targets
    adapters = [name for name in names if name not in PROJECTOR]
    assert len(adapters) == layers * len(targets) * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in adapters)


def test_parameters_that_were_trainable_before_are_frozen(model):
    model.requires_grad_(True)
    set_trainable(model, ["inputs.image.projector.*"])
    assert trainable(model) == PROJECTOR


def test_a_pattern_without_a_match_is_an_error_and_changes_nothing(model):
    before = trainable(model)
    with pytest.raises(SpecError, match=r"'inputs\.audio\.projector\.\*' matches no parameter"):
        set_trainable(model, ["inputs.image.projector.*", "inputs.audio.projector.*"])
    assert trainable(model) == before


def test_patterns_are_case_sensitive_and_support_brackets(model):
    with pytest.raises(SpecError):
        set_trainable(model, ["INPUTS.image.projector.*"])


def test_without_patterns_everything_is_frozen(model):
    assert set_trainable(model, []) == []
    assert trainable(model) == []
