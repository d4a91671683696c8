"""Adapters as a folder of their own: LoRA and prefixes as peft's, Houlsby adapters as ours.

peft has no bottleneck adapters, and the package that has them (`adapters`) needs an older
transformers. Their folder holds their spec and their weights under the names that they have in the
backbone: `adapter_config.json` and `adapter_model.safetensors`, as peft calls its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from peft import PrefixTuningConfig
from safetensors.torch import save_file
from torch import Tensor

from etl.storage.atomic import write_json
from model.exported import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE
from model.peft.lora import lora_config, peft_name
from model.peft.prefix import peft_embeddings, prefix_shape
from model.spec import Lora
from model.spec.peft import QLora
from pipeline.convert.trained_model import TrainedModel


def write_adapter_folder(folder: Path, model: TrainedModel) -> None:
    """Write a model's adapters, by the names of its backbone alone.

    Raises:
        SpecError: a prefix that would give other logits in peft.
    """
    peft, base = model.stage.peft, model.spec.backbone.weights
    if isinstance(peft, Lora | QLora):
        write_lora(folder, peft, model.adapters(), prefix=BACKBONE, targets=peft.targets, base=base)
        return
    folder.mkdir()
    backbone = model.module.backbone
    if model.has_prefix:
        layers, _, heads, width = prefix_shape(backbone)
        weights = {"prompt_embeddings": peft_embeddings(backbone)}
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=len(weights["prompt_embeddings"]),
            num_layers=layers,
            num_attention_heads=heads,
            token_dim=heads * width,
            base_model_name_or_path=base,
            inference_mode=True,
        ).save_pretrained(folder)
    else:
        assert peft is not None
        write_json(folder / ADAPTER_CONFIG, asdict(peft) | {"base_model_name_or_path": base})
        weights = {name.removeprefix(BACKBONE): each for name, each in model.adapters().items()}
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / ADAPTER_WEIGHTS)


def write_lora(
    folder: Path,
    lora: Lora | QLora,
    adapters: Mapping[str, Tensor],
    *,
    prefix: str,
    targets: Sequence[str],
    base: str,
) -> None:
    """Write low-rank adapters as a peft folder, which `PeftModel.from_pretrained` loads.

    Args:
        folder: to make.
        lora: their settings.
        adapters: by name, which begins with `prefix`.
        prefix: of the names in the adapted module.
        targets: the layers that peft is to adapt: names, or their last parts.
        base: where the adapted module comes from.
    """
    folder.mkdir()
    lora_config(lora, targets, base_model_name_or_path=base, inference_mode=True).save_pretrained(
        folder
    )
    weights = {peft_name(name, prefix): each.contiguous() for name, each in adapters.items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
