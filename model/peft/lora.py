"""Low-rank adapters, through peft: LoRA (Hu et al. 2021), rsLoRA and DoRA.

Shapes: o and i, the widths of a layer's output and input; r the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.compat.bitsandbytes import dequantized, is_quantized
from model.peft.targets import linear_layers
from model.spec import SpecError
from model.spec.peft import Lora, QLora

if TYPE_CHECKING:
    from peft import LoraConfig


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
    from peft import inject_adapter_in_model  # noqa: PLC0415

    inject_adapter_in_model(lora_config(lora, lora.targets), backbone, adapter_name=name)


def lora_config(
    lora: Lora | QLora,
    targets: Sequence[str],
    **more: Any,  # noqa: ANN401 -- further fields of theirs
) -> LoraConfig:
    """Return a spec as peft's configuration."""
    from peft import LoraConfig  # noqa: PLC0415 -- as above

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        **more,
    )


def reset_magnitudes(backbone: nn.Module) -> None:
    """Set DoRA's magnitudes to the norms of the layers' current weights (Liu et al. 2024, §4.1).

    peft does so as it adds the adapters, which may be before the weights are loaded.
    """
    for layer in _adapted(backbone).values():
        for name, magnitude in layer.lora_magnitude_vector.items():
            magnitude.update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[name].weight,
                lora_B=layer.lora_B[name].weight,
                scaling=layer.scaling[name],
            )


def merge_adapters(backbone: nn.Module) -> None:
    """Merge LoRA adapters in place, as peft does; `unmerge_adapters` takes them out again.

    Raises:
        SpecError: no low-rank adapters, or weights of four bits, which would be rounded anew.
    """
    for layer in _mergeable(backbone):
        layer.merge()


def unmerge_adapters(backbone: nn.Module) -> None:
    """Undo `merge_adapters`, but for rounding.

    Raises:
        SpecError: see there.
    """
    for layer in _mergeable(backbone):
        layer.unmerge()


def _mergeable(backbone: nn.Module) -> list[Any]:
    layers = list(_adapted(backbone).values())
    if not layers:
        raise SpecError("peft: only low-rank adapters can be merged, and the backbone has none")
    if any(is_quantized(layer.get_base_layer().weight) for layer in layers):
        raise SpecError(
            "peft: 'qlora' cannot be merged in place, into four bits; export merges it into the "
            "weights that they stand for"
        )
    return layers


def merge_lora(backbone: nn.Module) -> int:
    """Merge LoRA adapters into the layers that they adapt, in place; return how many there were.

    Computed in float32, which the merged layers then are in; weights of four bits become plain.
    """
    adapted = _adapted(backbone)
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        magnitudes = layer.lora_magnitude_vector
        with torch.no_grad():
            merged_oi = merged_weight(
                dequantized(base.weight),
                down_ri=layer.lora_A["default"].weight,
                up_or=layer.lora_B["default"].weight,
                scale=layer.scaling["default"],
                magnitude_o=magnitudes["default"].weight if "default" in magnitudes else None,
            )
        backbone.set_submodule(name, plain_linear(merged_oi, base.bias))
    return len(adapted)


def merged_weight(
    weight_oi: Tensor, *, down_ri: Tensor, up_or: Tensor, scale: float, magnitude_o: Tensor | None
) -> Tensor:
    """Return what a layer's weight and its adapter amount to, in float32.

    W + s · B A (Hu et al. 2021, §4.1); with a magnitude, m (W + s · B A) / ‖W + s · B A‖, the norm
    of each output's weights (DoRA, Liu et al. 2024, eq. 5).
    """
    merged_oi = weight_oi.float() + scale * (up_or.float() @ down_ri.float())
    if magnitude_o is None:
        return merged_oi
    return merged_oi * (magnitude_o.float() / merged_oi.norm(dim=1))[:, None]


def plain_linear(weight_oi: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """Return a linear layer of given weights."""
    width_out, width_in = weight_oi.shape
    linear = nn.Linear(width_in, width_out, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight_oi)
    if bias is not None:
        linear.bias = bias
    return linear


def _adapted(backbone: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 -- as above

    layers = dict(backbone.named_modules())
    return {name: each for name, each in layers.items() if isinstance(each, LoraLayer)}


_PEFT = "base_model.model."
"""What a peft folder's names begin with."""


def peft_name(ours: str, prefix: str) -> str:
    """Return a peft folder's name of an adapter's weight; `prefix` is of the adapted module."""
    name = _PEFT + ours.removeprefix(prefix).replace(".default.", ".")
    return name.removesuffix(".weight") if ".lora_magnitude_vector." in name else name


def our_name(theirs: str, prefix: str) -> str:
    """Return our name of an adapter's weight in a peft folder; the inverse of `peft_name`."""
    layer, letter, rest = theirs.removeprefix(_PEFT).rpartition(".lora_")
    kind, _, parameter = rest.partition(".")
    return f"{prefix}{layer}{letter}{kind}.default.{parameter or 'weight'}"
