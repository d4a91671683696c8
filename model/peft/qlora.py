"""QLoRA: adapters on 4-bit weights (Dettmers et al. 2023), through bitsandbytes."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import nn
from transformers import PreTrainedModel

from model.compat.bitsandbytes import dequantized, is_quantized
from model.compat.transformers import modules_kept_in_fp32
from model.peft.lora import add_lora, plain_linear
from model.spec import SpecError
from model.spec.peft import QLora


def add(backbone: PreTrainedModel, spec: QLora) -> None:
    """Quantise the backbone's linear layers and add adapters to them, in place.

    Not quantised are the output matrix, and layers that transformers keeps in float32 (T5's `wo`,
    whose dtype its code inspects).

    Raises:
        SpecError: bitsandbytes is not installed, or a target matches no linear layer.
    """
    library = _bitsandbytes()
    dtype = next(backbone.parameters()).dtype
    output, fp32 = backbone.get_output_embeddings(), modules_kept_in_fp32(backbone)
    for parent in list(backbone.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and module is not output and name not in fp32:
                setattr(parent, name, _quantise(module, dtype, library))
    add_lora(backbone, spec)
    for name, weight in backbone.named_parameters():
        if spec.parameter_marker in name:
            weight.data = weight.data.to(dtype)


def dequantize_layers(backbone: nn.Module) -> None:
    """Make the layers of four bits plain ones that compute with the same weights, in place."""
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, nn.Linear) and is_quantized(layer.weight):
            backbone.set_submodule(name, plain_linear(dequantized(layer.weight), layer.bias))


def _quantise(linear: nn.Linear, dtype: torch.dtype, library: ModuleType) -> nn.Module:
    """Return the layer in NF4 with double quantisation; on the meta device as it is, but frozen."""
    if linear.weight.device.type == "meta":
        # Of a `Params4bit` peft would want the values for DoRA's magnitudes.
        linear.weight.requires_grad = False
        return linear
    new = library.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    new.weight = library.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    new.bias = linear.bias
    # In evaluation mode it would irreversibly repack the weights for a kernel without gradients.
    new.support_avx512bf16_for_cpu = False
    quantised: nn.Module = new.to(linear.weight.device)
    return quantised


def _bitsandbytes() -> ModuleType:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise SpecError(
            "peft: 'qlora' needs bitsandbytes, which is not installed: pip install mmloom[qlora]"
        ) from error
