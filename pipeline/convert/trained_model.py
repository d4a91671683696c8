"""A trained model for export: built, loaded, its adapters merged, left apart, or parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.build import DTYPES, build
from model.exported import BACKBONE, distinct_names, of_generator
from model.multimodal_lm import MultimodalLM
from model.peft.lora import merge_lora
from model.peft.qlora import dequantize_layers
from model.spec import Lora, ModelSpec, SpecError, Stage
from model.spec.peft import Peft, Prefix, QLora
from model.weights import load_trained
from pipeline.checkpoint.adapters import adapter_record, check_adapters
from pipeline.config.run_config import RunConfig
from pipeline.convert.safetensors_store import LazyTensor

Adapters = Literal["auto", "merged", "separate"]

_BASE = ".base_layer."


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model, ready to be written.

    Args:
        name: of its system.
        spec: the model's.
        stage: its settings, with the adapters that are not merged.
        module: the model, on the CPU.
        separate: whether adapters that are not merged are to be written apart from it.
    """

    name: str
    spec: ModelSpec
    stage: Stage
    module: MultimodalLM
    separate: bool

    @property
    def dtype(self) -> torch.dtype:
        """The type of the written weights: the one that the run computes in."""
        return DTYPES[self.stage.precision]

    @property
    def has_prefix(self) -> bool:
        """Whether its adapters are a prefix."""
        return isinstance(self.stage.peft, Prefix)

    def tensors(self) -> dict[str, Tensor]:
        """Return the distinct tensors under their plain names.

        Those of separate adapters and of frozen generators are not among them.
        """
        state = self.module.state_dict()
        apart = self._adapter_names() if self.separate else frozenset()
        return {
            name.replace(_BASE, "."): state[name]
            for name in distinct_names(self.module)
            if name not in apart and not of_generator(name)
        }

    def adapters(self) -> dict[str, Tensor]:
        """Return the adapters that are not merged, under our names."""
        named = self.module.backbone.named_parameters(prefix=BACKBONE.rstrip("."))
        own = self._adapter_names()
        return {name: each.detach() for name, each in named if name in own}

    def _adapter_names(self) -> frozenset[str]:
        peft = self.stage.peft
        if peft is None:
            return frozenset()
        named = self.module.backbone.named_parameters(prefix=BACKBONE.rstrip("."))
        return frozenset(name for name, _ in named if peft.parameter_marker in name)

    def lazy(self, tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
        """Return tensors as they are to be written."""
        return {name: self._lazy(tensor) for name, tensor in tensors.items()}

    def _lazy(self, tensor: Tensor) -> LazyTensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return LazyTensor(
            size=tensor.numel() * dtype.itemsize, read=partial(tensor.to, dtype=dtype)
        )


def load_trained_model(config: RunConfig, weights: Path, adapters: Adapters) -> TrainedModel:
    """Build the model of a run and load its weights.

    Args:
        config: the run's.
        weights: its trained ones.
        adapters: `merged`: low-rank ones are merged in float32, those of QLoRA into the values that
            its four bits stand for, so that the result is the trained model; `separate`: they are
            written apart; `auto`: merged where that is possible, else parts of the model.

    Raises:
        SpecError: weights that cannot be loaded, or do not fit the model; adapters that cannot be
            merged.
        UserError: adapters that were trained on another base.
    """
    stage = replace(config.settings, recompute=False, reference=None)
    peft = stage.peft
    merges = isinstance(peft, Lora | QLora) and adapters != "separate"
    if adapters == "merged" and peft is not None and not merges:
        raise SpecError(
            f"--adapters merged: {peft.kind!r} has no weight that it could be merged into; "
            "want auto or separate"
        )
    spec = config.system.model
    built = replace(stage, peft=_without_quantization(peft)) if not merges else stage
    if isinstance(built.peft, Lora):
        built = replace(built, precision="fp32")
    module = build(spec, built, weights=config.weights, seed=config.seed)
    if built.peft == peft:  # the base of QLoRA's record is packed bytes
        check_adapters(weights, adapter_record(config, module))
    load_trained(module, weights)
    if merges:
        merge_lora(module.backbone)
        dequantize_layers(module.backbone)
        stage = replace(stage, peft=None)
    return TrainedModel(
        name=config.system.name,
        spec=spec,
        stage=stage,
        module=module.eval(),
        separate=stage.peft is not None and adapters == "separate",
    )


def _without_quantization(peft: Peft | None) -> Peft | None:
    """Return adapters on plain weights, in which a base is written whose adapters are separate."""
    if not isinstance(peft, QLora):
        return peft
    return Lora(
        **{item.name: getattr(peft, item.name) for item in fields(Lora) if item.name != "kind"}
    )
