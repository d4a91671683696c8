"""Low-rank adapters, through peft (Hu et al. 2021)."""

from __future__ import annotations

from transformers import PreTrainedModel

from model.peft.targets import linear_layers
from model.spec.peft import Lora, QLora


def add_lora(backbone: PreTrainedModel, lora: Lora | QLora) -> None:
    """Add LoRA adapters to the backbone's linear layers, in place; initially they are zero.

    Raises:
        SpecError: a target that matches no linear layer.
    """
    # Imported here since it imports packages (bitsandbytes, if installed) that few stages need.
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    linear_layers(backbone, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
    inject_adapter_in_model(config, backbone)
