"""PyTorch: products with weights that oneDNN has packed, the ops that its compiler calls.

Shapes: o outputs, i inputs, … any number of leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def can_be_packed(weight: Tensor) -> bool:
    """Return whether oneDNN packs a weight: of 32 bits, on a CPU."""
    available = torch.backends.mkldnn.is_available()
    return bool(available) and weight.device.type == "cpu" and weight.dtype == torch.float32


def pack_weight(weight_oi: Tensor) -> Tensor:
    """Return a copy of a weight that only `packed_linear` takes."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_oi.detach(), None)
    return packed


def packed_linear(rows: Tensor, packed: Tensor, bias_o: Tensor | None) -> Tensor:
    """Return the product (…, o) of rows (…, i) with a packed weight, without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias_o, "none", [], "")
    return product
