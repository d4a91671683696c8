"""Prefix-tuning: learned keys and values before those of every layer (Li and Liang 2021).

The prefix wraps the cache instead of being stored in it. It thus works both with activation
checkpointing, for which transformers drops the cache, and in generation, and the position ids of
the text do not change.

Shapes: b sequences, t positions of this call, s positions including cached ones, p prefix
length, l layers, h heads of keys and values, c width of a head.
"""

from __future__ import annotations

import sys
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
    encoder = PrefixEncoder(spec, prefix_shape(backbone), config.hidden_size)
    decoder.prefix = encoder.to(next(backbone.parameters()).dtype)
    decoder.register_forward_pre_hook(_compute_prefix, with_kwargs=True)
    for layer in _attention_layers(decoder):
        layer.register_forward_pre_hook(_prepend_prefix, with_kwargs=True)


def prefix_shape(backbone: PreTrainedModel) -> tuple[int, int, int, int]:
    """Return the shape of one position of a prefix: layers, keys and values, heads, width."""
    return (len(_attention_layers(backbone.get_decoder())), 2, *_heads(backbone.config))


def peft_embeddings(backbone: PreTrainedModel) -> Tensor:
    """Return the trained prefix as `prompt_embeddings` of peft's PREFIX_TUNING, (p, 2·l·h·c).

    With peft the text begins at position p, with us at 0. Rotary scores depend on differences of
    positions alone, so that the prefix's keys, rotated by p, give the same scores.

    Raises:
        SpecError: a backbone without rotary positions.
    """
    decoder = backbone.get_decoder()
    encoder = decoder.prefix
    assert isinstance(encoder, PrefixEncoder)
    with torch.no_grad():
        prefix_l2hpc = encoder().float()
        prefix_l2hpc[:, 0] = _rotated(backbone, prefix_l2hpc[:, 0], prefix_l2hpc.shape[3])
    return prefix_l2hpc.permute(3, 0, 1, 2, 4).flatten(1)


def load_peft_embeddings(backbone: PreTrainedModel, embeddings: Tensor) -> None:
    """Give a backbone, which has a prefix without a hidden layer, the result of `peft_embeddings`.

    Raises:
        SpecError: embeddings of another shape.
    """
    encoder = backbone.get_decoder().prefix
    assert isinstance(encoder, PrefixEncoder)
    own = encoder.rows
    if embeddings.shape != own.shape:
        raise SpecError(f"prefix: its shape is {tuple(embeddings.shape)}, want {tuple(own.shape)}")
    with torch.no_grad():
        prefix_pl2hc = embeddings.float().unflatten(1, encoder.shape_l2hc).clone()
        keys_lhpc = prefix_pl2hc[:, :, 0].permute(1, 2, 0, 3)
        keys_lhpc.copy_(_rotated(backbone, keys_lhpc, -len(own)))
        own.copy_(prefix_pl2hc.flatten(1))


def _rotated(backbone: PreTrainedModel, keys_lhpc: Tensor, by: int) -> Tensor:
    """Return keys as they are so many positions later."""
    decoder = backbone.get_decoder()
    rotate = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    if rotate is None or not hasattr(decoder, "rotary_emb"):
        raise SpecError(
            f"peft: a prefix of {type(backbone).__name__}, which has no rotary positions, gives "
            "other logits in peft; want --adapters auto, which leaves it in the model"
        )
    positions = torch.full((1, 1), by, device=keys_lhpc.device)
    cos, sin = (
        each / decoder.rotary_emb.attention_scaling
        for each in decoder.rotary_emb(keys_lhpc, positions)
    )
    turned: Tensor = rotate(keys_lhpc, keys_lhpc, cos, sin)[1]
    return turned


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
