"""What the adapters of a checkpoint were trained on: they mean nothing on another base.

A checkpoint's manifest has, as `adapters`, their settings and the base: where its weights come from
and a fingerprint of them, since a folder may get other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from etl.cli import UserError
from model.multimodal_lm import MultimodalLM
from model.weights import without_adapter
from pipeline.checkpoint.files import read_manifest
from pipeline.config.run_config import RunConfig
from pipeline.forecast.plan import FUSED

ADAPTERS = "adapters"
BASE = "base"
"""Keys of a manifest; the second only of a reward model, which is loaded beside a policy."""

_SETTINGS = ("kind", "rank", "alpha", "length", "bottleneck", "use_rslora", "use_dora")
_VALUES = 64
"""Values of each weight that the fingerprint covers."""


def adapter_record(run: RunConfig, model: nn.Module) -> dict[str, Any] | None:
    """Return what a run's adapters are and are trained on; None for a stage without adapters.

    Args:
        run: the configuration.
        model: built, before trained weights are loaded.
    """
    peft = run.settings.peft
    if peft is None:
        return None
    backbone = model.get_submodule("backbone")
    return {
        # Switches only where they are on: checkpoints of older versions have none.
        **{name: found for name in _SETTINGS if (found := getattr(peft, name, False)) is not False},
        "base": "random weights" if run.weights == "random" else run.system.model.backbone.weights,
        "fingerprint": _fingerprint(backbone, peft.parameter_marker),
    }


def base_record(run: RunConfig, model: MultimodalLM) -> dict[str, str]:
    """Return a fingerprint of each component that a run's adapters are trained with.

    Args:
        run: the configuration.
        model: with its trained weights, and without frozen adapters beside the trained ones.
    """
    assert run.settings.peft is not None
    marker = run.settings.peft.parameter_marker
    inputs = [
        (f"inputs.{kind}.{name}", module)
        for kind, own in model.inputs.items()
        for name, module in own.named_children()
    ]
    components = [*inputs, ("backbone", model.backbone)]
    return {name: _fingerprint(module, marker) for name, module in components}


def _fingerprint(module: nn.Module, marker: str) -> str:
    """Return a hash over samples of a module's own weights, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name, weight in module.named_parameters():
        if marker in name or FUSED.intersection(name.split(".")):
            continue
        flat = weight.detach().flatten()
        values = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES]
        digest.update(f"{without_adapter(name)} {tuple(weight.shape)}\n".encode())
        if weight.is_floating_point():
            digest.update(values.bfloat16().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_adapters(weights: Path, own: Mapping[str, Any] | None) -> None:
    """Raise UserError where the adapters of a checkpoint do not fit a stage and its backbone.

    Args:
        weights: a checkpoint's file of trained weights.
        own: the result of `adapter_record`.
    """
    stored = read_manifest(weights.parent).get(ADAPTERS)
    if stored is None or own is None or stored == own:
        return
    where = ""
    if {**stored, "fingerprint": ""} == {**own, "fingerprint": ""}:
        where = ", whose content is another now"
    raise UserError(
        f"{weights}: its adapters were trained on {_text(stored)}; "
        f"this stage has {_text(own)}{where}"
    )


def _text(record: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {record[name]}" for name in _SETTINGS if name in record)
    return f"{record['base']} ({settings})"
