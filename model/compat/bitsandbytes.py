"""What bitsandbytes lets one do with weights of four bits under private names only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is stored in four bits."""
    return getattr(weight, "quant_state", None) is not None


def unquantized_shape(weight: Any) -> torch.Size:  # noqa: ANN401 -- its class is optional
    """Return the shape of a weight before it was quantized, if it was."""
    return torch.Size(weight.quant_state.shape if is_quantized(weight) else weight.shape)


def dequantized(weight: Any) -> Tensor:  # noqa: ANN401 -- as above
    """Return a weight as its layer computes with it, in the type that it had before."""
    if not is_quantized(weight):
        return torch.Tensor.detach(weight)
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 -- optional

    plain: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return plain


def quantize_into(weight: Any, values: Tensor) -> None:  # noqa: ANN401 -- as above
    """Give a weight of four bits other values, which are quantized as its first ones were.

    Args:
        weight: a `Params4bit`.
        values: of its unquantized shape, in any type; rounded first to the one it was made from.
    """
    device, dtype = weight.device, weight.quant_state.dtype
    weight.data = values.to(device, dtype)
    weight.bnb_quantized = False
    weight._quantize(device)
