"""Low-rank adapters as a peft folder, which `PeftModel.from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from model.exported import ADAPTER_WEIGHTS
from model.peft.lora import peft_name
from model.spec import Lora


def write_adapters(
    folder: Path,
    lora: Lora,
    adapters: Mapping[str, Tensor],
    *,
    prefix: str,
    targets: Sequence[str],
    base: str,
) -> None:
    """Write adapters and their configuration.

    Args:
        folder: to make.
        lora: their settings.
        adapters: by name, which begins with `prefix`.
        prefix: of the names in the adapted module.
        targets: the layers that peft is to adapt: names, or their last parts.
        base: where the adapted module comes from.
    """
    folder.mkdir()
    LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(folder)
    weights = {peft_name(name, prefix): each.contiguous() for name, each in adapters.items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
