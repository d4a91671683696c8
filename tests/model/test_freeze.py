"""Freezing: exactly what the patterns say, and a pattern that says nothing is a mistake."""

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


def test_what_was_trainable_before_does_not_stay_so(model):
    model.requires_grad_(True)
    set_trainable(model, ["inputs.image.projector.*"])
    assert trainable(model) == PROJECTOR


def test_a_pattern_without_a_match_is_a_mistake_and_changes_nothing(model):
    before = trainable(model)
    with pytest.raises(SpecError, match=r"'inputs\.audio\.projector\.\*' matches no parameter"):
        set_trainable(model, ["inputs.image.projector.*", "inputs.audio.projector.*"])
    assert trainable(model) == before


def test_patterns_tell_case_and_brackets_apart(model):
    with pytest.raises(SpecError):
        set_trainable(model, ["INPUTS.image.projector.*"])


def test_no_pattern_freezes_everything(model):
    assert set_trainable(model, []) == []
    assert trainable(model) == []
