"""A trained model for export: built, loaded, its low-rank adapters merged or left apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.build import DTYPES, build
from model.exported import BACKBONE, distinct_names, of_generator
from model.multimodal_lm import MultimodalLM
from model.peft.lora import merge_lora
from model.spec import Lora, ModelSpec, Stage
from model.spec.peft import QLora
from model.weights import load_trained
from pipeline.checkpoint.adapters import adapter_record, check_adapters
from pipeline.config.run_config import RunConfig
from pipeline.convert.safetensors_store import LazyTensor

Adapters = Literal["merged", "separate"]

_BASE = ".base_layer."


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model, ready to be written.

    Args:
        name: of its system.
        spec: the model's.
        stage: its settings, with the adapters that are not merged.
        module: the model, on the CPU.
        merged: number of layers that adapters were merged into.
    """

    name: str
    spec: ModelSpec
    stage: Stage
    module: MultimodalLM
    merged: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the written weights: the one that the run computes in."""
        return DTYPES[self.stage.precision]

    def tensors(self) -> dict[str, Tensor]:
        """Return the distinct tensors under their plain names.

        Those of low-rank adapters and of frozen generators are not among them.
        """
        state = self.module.state_dict()
        names = [
            name
            for name in distinct_names(self.module)
            if Lora.parameter_marker not in name and not of_generator(name)
        ]
        return {name.replace(_BASE, "."): state[name] for name in names}

    def adapters(self) -> dict[str, Tensor]:
        """Return the low-rank adapters that are not merged, under our names."""
        named = self.module.backbone.named_parameters(prefix=BACKBONE.rstrip("."))
        return {name: each.detach() for name, each in named if Lora.parameter_marker in name}

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

    Adapters are merged in float32. Those of QLoRA go onto the unquantized weights, as is usual;
    the result differs slightly from the trained model.

    Raises:
        SpecError: weights that cannot be loaded, or do not fit the model.
        UserError: adapters that were trained on another base.
    """
    stage = replace(config.settings, recompute=False, reference=None)
    peft = stage.peft
    if isinstance(peft, QLora):
        peft = Lora(rank=peft.rank, alpha=peft.alpha, dropout=peft.dropout, targets=peft.targets)
        stage = replace(stage, peft=peft)
    spec = config.system.model
    loaded_as = replace(stage, precision="fp32") if isinstance(peft, Lora) else stage
    module = build(spec, loaded_as, weights=config.weights, seed=config.seed)
    if not isinstance(config.settings.peft, QLora):  # of which the base was packed bytes
        check_adapters(weights, adapter_record(config, module))
    load_trained(module, weights)
    merged = 0
    if isinstance(peft, Lora) and adapters == "merged":
        merged = merge_lora(module.backbone)
        stage = replace(stage, peft=None)
    return TrainedModel(
        name=config.system.name, spec=spec, stage=stage, module=module.eval(), merged=merged
    )
