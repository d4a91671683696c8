"""Several low-rank adapters over one backbone: the policy's, and frozen ones beside them.

The reference policy is a frozen copy of the adapters of SFT, and a reward model others: neither is
a second model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.compat.peft import active_adapter
from model.peft.lora import inject
from model.spec.peft import Lora, QLora

_POLICY, _REFERENCE = "default", "reference"


def add_reference(backbone: PreTrainedModel, lora: Lora | QLora) -> None:
    """Add a second adapter to every adapted layer, in place, with the values of the first.

    As long as SFT's adapters are zero, it is the backbone itself.
    """
    add_frozen(backbone, lora, _REFERENCE, dict(backbone.named_parameters()))


def add_frozen(
    backbone: PreTrainedModel, lora: Lora | QLora, name: str, values: Mapping[str, Tensor]
) -> None:
    """Add another adapter to adapted layers, in place, frozen and without dropout.

    Args:
        backbone: with the policy's adapters.
        lora: the shape of the new ones.
        name: of the new ones.
        values: of theirs, under the names that they would have as the policy's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject(backbone, replace(lora, dropout=0.0), name)
    with torch.no_grad():
        for own, weight in backbone.named_parameters():
            if f".{name}." in own:
                weight.copy_(values[own.replace(f".{name}.", f".{_POLICY}.")])
                weight.requires_grad_(False)


@contextmanager
def policy_active(backbone: PreTrainedModel) -> Iterator[None]:
    """Compute with the trained adapters."""
    with active_adapter(backbone, _POLICY):
        yield


@contextmanager
def frozen_active(backbone: PreTrainedModel, name: str = _REFERENCE) -> Iterator[None]:
    """Compute with frozen adapters, those of the reference or others, without gradients."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad(), active_adapter(backbone, name):
            yield
    finally:
        backbone.train(training)
