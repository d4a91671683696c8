"""The reference policy of RLHF: a frozen copy of the low-rank adapters, and no second model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from model.compat.peft import active_adapter
from model.peft.lora import inject
from model.spec.peft import Lora, QLora

_POLICY, _REFERENCE = "default", "reference"


def add_reference(backbone: PreTrainedModel, lora: Lora | QLora) -> None:
    """Add a second adapter to every adapted layer, in place, with the values of the first.

    It has no dropout. As long as SFT's adapters are zero, it is the backbone itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject(backbone, replace(lora, dropout=0.0), _REFERENCE)
    with torch.no_grad():
        own = dict(backbone.named_parameters())
        for name, weight in own.items():
            if f".{_REFERENCE}." in name:
                weight.copy_(own[name.replace(f".{_REFERENCE}.", f".{_POLICY}.")])
                weight.requires_grad_(False)


@contextmanager
def policy_active(backbone: PreTrainedModel) -> Iterator[None]:
    """Compute with the trained adapters."""
    with active_adapter(backbone, _POLICY):
        yield


@contextmanager
def reference_active(backbone: PreTrainedModel) -> Iterator[None]:
    """Compute with the copy, without dropout and without gradients."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad(), active_adapter(backbone, _REFERENCE):
            yield
    finally:
        backbone.train(training)
