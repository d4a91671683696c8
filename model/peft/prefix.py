"""Prefix-tuning: learned keys and values before those of every layer (Li and Liang 2021).

The prefix wraps the cache instead of being stored in it. It thus works both with activation
checkpointing, for which transformers drops the cache, and in generation, and the position ids of
the text do not change.

Shapes: b sequences, t positions of this call, s positions including cached ones, p prefix
length, l layers, h heads of keys and values, c width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from model.compat.transformers import attention_implementation
from model.spec import SpecError
from model.spec.peft import Prefix

Call = tuple[tuple[Any, ...], dict[str, Any]]


class PrefixEncoder(nn.Module):
    """Computes the prefix keys and values of all layers, through one hidden layer (§4.3)."""

    def __init__(self, spec: Prefix, shape_l2hc: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.shape_l2hc = shape_l2hc
        out = int(torch.Size(shape_l2hc).numel())
        self.rows = nn.Parameter(torch.empty(spec.length, out if spec.hidden is None else width))
        nn.init.normal_(self.rows, std=0.02)
        self.network: nn.Module = nn.Identity()
        if spec.hidden is not None:
            inner, outer = nn.Linear(width, spec.hidden), nn.Linear(spec.hidden, out)
            for linear in (inner, outer):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            self.network = nn.Sequential(inner, nn.Tanh(), outer)

    def forward(self) -> Tensor:
        """Return keys and values (l, 2, h, p, c)."""
        prefix: Tensor = self.network(self.rows).unflatten(-1, self.shape_l2hc)
        return prefix.permute(1, 2, 3, 0, 4)


class PrefixedCache:
    """A layer's cache, or none, that returns the prefix before its keys and values."""

    def __init__(self, prefix_2hpc: Tensor, cache: Any | None) -> None:  # noqa: ANN401
        self._prefix_2hpc = prefix_2hpc
        self._cache = cache

    def update(
        self,
        keys_bhtc: Tensor,
        values_bhtc: Tensor,
        *args: Any,  # noqa: ANN401 -- the cache's arguments
        **more: Any,  # noqa: ANN401 -- the cache's arguments
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (b, h, p + s, c), with the interface of transformers' caches."""
        both = (keys_bhtc, values_bhtc)
        if self._cache is not None:
            both = self._cache.update(*both, *args, **more)
        prefixed = [
            torch.cat([prefix_hpc.to(own.dtype).expand(len(own), -1, -1, -1), own], dim=2)
            for prefix_hpc, own in zip(self._prefix_2hpc, both, strict=True)
        ]
        return prefixed[0], prefixed[1]


def add(backbone: PreTrainedModel, spec: Prefix) -> None:
    """Add a prefix to every layer of a causal backbone, in place.

    Raises:
        SpecError: an attention other than `sdpa` and `eager`, whose mask cannot be extended.
    """
    config, decoder = backbone.config, backbone.get_decoder()
    attention = attention_implementation(config)
    if attention not in ("sdpa", "eager"):
        raise SpecError(f"peft: 'prefix' does not support {attention} attention")
    layers = _attention_layers(decoder)
    encoder = PrefixEncoder(spec, (len(layers), 2, *_heads(config)), config.hidden_size)
    decoder.prefix = encoder.to(next(backbone.parameters()).dtype)
    decoder.register_forward_pre_hook(_compute_prefix, with_kwargs=True)
    for layer in layers:
        layer.register_forward_pre_hook(_prepend_prefix, with_kwargs=True)


def _attention_layers(decoder: nn.Module) -> list[nn.Module]:
    """Return the modules that use the cache: in some classes a whole layer has an index, too."""
    indexed = [module for module in decoder.modules() if hasattr(module, "layer_idx")]
    return [
        module
        for module in indexed
        if not any(hasattr(inner, "layer_idx") for inner in list(module.modules())[1:])
    ]


def _heads(config: PretrainedConfig) -> tuple[int, int]:
    """Return the number of key-value heads and their width.

    Not all architectures have these two fields in their configurations.
    """
    fields = config.to_dict()
    heads = fields.get("num_key_value_heads") or config.num_attention_heads
    return heads, fields.get("head_dim") or config.hidden_size // config.num_attention_heads


def _compute_prefix(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Call:
    """Compute the prefix once; the decoder passes it to all layers as a keyword argument."""
    encoder = decoder.prefix
    assert isinstance(encoder, PrefixEncoder)
    return args, options | {"prefix": encoder()}


def _prepend_prefix(attention: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Call:
    """Add the layer's prefix to its cache and, unmasked, to its mask (b or 1, 1, t, s)."""
    prefix_l2hpc = options.pop("prefix")
    layer = attention.layer_idx
    assert isinstance(layer, int)
    states = options["hidden_states"] if "hidden_states" in options else args[0]
    mask = options["attention_mask"]
    if mask is None and states.shape[1] > 1:  # transformers leaves causal masks to the kernel
        length = states.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()[None, None]
    if mask is not None:
        mask = F.pad(mask, (prefix_l2hpc.shape[3], 0), value=mask.dtype == torch.bool)
    cache = PrefixedCache(prefix_l2hpc[layer], options.get("past_key_values"))
    return args, options | {"attention_mask": mask, "past_key_values": cache}
