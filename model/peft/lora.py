"""Low-rank adapters, through peft (Hu et al. 2021)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from model.peft.targets import linear_layers
from model.spec.peft import Lora, QLora


def add_lora(backbone: PreTrainedModel, lora: Lora | QLora) -> None:
    """Add LoRA adapters to the backbone's linear layers, in place; initially they are zero.

    Raises:
        SpecError: a target that matches no linear layer.
    """
    linear_layers(backbone, lora.targets)
    inject(backbone, lora, "default")


def inject(backbone: PreTrainedModel, lora: Lora | QLora, name: str) -> None:
    """Add an adapter of that name to the target layers, and compute with it from now on."""
    # Imported here since it imports packages (bitsandbytes, if installed) that few stages need.
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
    inject_adapter_in_model(config, backbone, adapter_name=name)


def merge_lora(backbone: nn.Module) -> int:
    """Merge LoRA adapters into the layers that they adapt, in place; return how many there were.

    W + α/r · B A (Hu et al. 2021, §4.1), computed in the weights' own precision.
    """
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 -- as above

    adapted = [
        (name, each) for name, each in backbone.named_modules() if isinstance(each, LoraLayer)
    ]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    return len(adapted)


_PEFT = "base_model.model."
"""What a peft folder's names begin with."""


def peft_name(ours: str, prefix: str) -> str:
    """Return a peft folder's name of an adapter's weight; `prefix` is of the adapted module."""
    return _PEFT + ours.removeprefix(prefix).replace(".default.", ".")


def our_name(theirs: str, prefix: str) -> str:
    """Return our name of an adapter's weight in a peft folder; the inverse of `peft_name`."""
    layer, letter, rest = theirs.removeprefix(_PEFT).rpartition(".lora_")
    kind, _, parameter = rest.partition(".")
    return f"{prefix}{layer}{letter}{kind}.default.{parameter}"
