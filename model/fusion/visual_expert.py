"""CogVLM's visual expert: separate weights for media in every layer (Wang et al. 2023, §2.1).

Shapes: b sequences, t positions of this call, s positions including cached ones, d width,
h heads, c width of a head, n = b·t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from model.compat.transformers import attention_implementation
from model.spec.fusion import VisualExpert


@dataclass(frozen=True)
class Routing:
    """Assignment of positions to the language expert or the visual expert.

    Args:
        order_n: indices of all positions of all sequences, the language expert's first.
        inverse_n: the inverse permutation.
        texts: number of positions of the language expert.
    """

    order_n: Tensor
    inverse_n: Tensor
    texts: int

    @classmethod
    def of(cls, vision_bt: Tensor) -> Routing:
        """Return the routing for a mask that is true at positions of the visual expert."""
        order_n = torch.argsort(vision_bt.flatten().long(), stable=True)
        return cls(order_n, torch.argsort(order_n), int((~vision_bt).sum()))

    def __call__(self, language: nn.Module, vision: nn.Module, states_btd: Tensor) -> Tensor:
        """Apply to each position its own expert, (b, t, d) → (b, t, d').

        Both experts are always called: under ZeRO-3 each call is a collective.
        """
        sorted_nd = states_btd.flatten(0, 1)[self.order_n]
        out_nd = torch.cat([language(sorted_nd[: self.texts]), vision(sorted_nd[self.texts :])])
        return out_nd[self.inverse_n].unflatten(0, states_btd.shape[:2])


class Projections(nn.Module):
    """The visual expert's linear layers of attention, initialised from the language model's."""

    def __init__(self, language: LlamaAttention, *, bias: bool) -> None:
        super().__init__()
        self.q_proj = _copied(language.q_proj, bias=bias)
        self.k_proj = _copied(language.k_proj, bias=bias)
        self.v_proj = _copied(language.v_proj, bias=bias)
        self.o_proj = _copied(language.o_proj, bias=False)


class ExpertAttention(nn.Module):
    """LLaMA's self-attention over all positions, with two sets of linear layers around it."""

    def __init__(self, attention: LlamaAttention, *, bias: bool) -> None:
        super().__init__()
        self.config = attention.config
        self.layer_idx = attention.layer_idx
        self.head_dim = attention.head_dim
        self.num_key_value_groups = attention.num_key_value_groups
        self.scaling = attention.scaling
        self.is_causal = True
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.expert = Projections(attention, bias=bias)

    def forward(
        self,
        hidden_btd: Tensor,
        *,
        routing: Routing,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any | None = None,  # noqa: ANN401 -- transformers' Cache
        **more: Any,  # noqa: ANN401 -- for the attention function
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention output (b, t, d), and the attention weights if available."""
        q_bhtc, k_bhtc, v_bhtc = (
            routing(language, vision, hidden_btd).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for language, vision in (
                (self.q_proj, self.expert.q_proj),
                (self.k_proj, self.expert.k_proj),
                (self.v_proj, self.expert.v_proj),
            )
        )
        q_bhtc, k_bhsc = apply_rotary_pos_emb(q_bhtc, k_bhtc, *position_embeddings)
        v_bhsc = v_bhtc
        if past_key_values is not None:
            k_bhsc, v_bhsc = past_key_values.update(k_bhsc, v_bhsc, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention_implementation(self.config), eager_attention_forward
        )
        attended_bthc, weights = attend(
            self, q_bhtc, k_bhsc, v_bhsc, attention_mask, scaling=self.scaling, **more
        )
        return routing(self.o_proj, self.expert.o_proj, attended_bthc.flatten(2)), weights


class ExpertLayer(GradientCheckpointingLayer):
    """A LLaMA layer with a visual expert in attention and feed-forward."""

    def __init__(self, layer: LlamaDecoderLayer, *, bias: bool) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = ExpertAttention(layer.self_attn, bias=bias)
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp
        self.expert_mlp = deepcopy(layer.mlp)

    def forward(self, hidden_btd: Tensor, *, routing: Routing, **more: Any) -> Tensor:  # noqa: ANN401
        """Return the hidden states (b, t, d) after this layer."""
        attended_btd, _ = self.self_attn(self.input_layernorm(hidden_btd), routing=routing, **more)
        hidden_btd = hidden_btd + attended_btd
        normed_btd = self.post_attention_layernorm(hidden_btd)
        return hidden_btd + routing(self.mlp, self.expert_mlp, normed_btd)


def add(backbone: PreTrainedModel, spec: VisualExpert) -> None:
    """Add a visual expert to every layer of a LLaMA, in place, as a copy of the layer's weights.

    Its decoder then requires `vision_mask`, and `position_ids` if media share a position; see
    `decoder_kwargs`.
    """
    decoder = backbone.get_decoder()
    for number, layer in enumerate(decoder.layers):
        decoder.layers[number] = ExpertLayer(layer, bias=spec.bias)
    decoder.register_forward_pre_hook(_route, with_kwargs=True)


def decoder_kwargs(
    spec: VisualExpert, attention_bt: Tensor, media_masks: Sequence[tuple[Tensor, int]]
) -> dict[str, Tensor]:
    """Return the decoder's keyword arguments for spliced media.

    The first and the last token of a medium are its boundary tokens. The last one is routed to the
    language expert, and both have positions of their own, while all tokens in between share one.

    Args:
        spec: whether tokens of a medium share a position.
        attention_bt: 1 for tokens, 0 for padding.
        media_masks: per kind of media the mask of its tokens (b, t), and its tokens per medium.

    Returns:
        `vision_mask` (b, t), true for the visual expert; `position_ids` (b, t).
    """
    vision_bt = torch.zeros_like(attention_bt, dtype=torch.bool)
    steps_bt = attention_bt.long()
    for mask_bt, tokens in media_masks:
        within_bt = (mask_bt.long().cumsum(1) - 1) % tokens
        vision_bt = vision_bt | (mask_bt & (within_bt < tokens - 1))
        steps_bt = steps_bt.masked_fill(mask_bt & (within_bt > 1) & (within_bt < tokens - 1), 0)
    if not spec.shared_position:
        return {"vision_mask": vision_bt}
    return {"vision_mask": vision_bt, "position_ids": (steps_bt.cumsum(1) - 1).clamp(min=0)}


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the language model of a published CogVLM checkpoint to ours.

    Its `query_key_value` holds all queries, then keys, then values. The encoder, `model.vision.*`,
    is dropped.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("model.vision.") or name.endswith("rotary_emb.inv_freq"):
            continue
        module, _, kind = name.rpartition(".")
        module = module.replace("self_attn.language_expert_", "self_attn.")
        module = module.replace("self_attn.vision_expert_", "self_attn.expert.")
        module = module.replace("mlp.language_mlp", "mlp").replace("mlp.vision_mlp", "expert_mlp")
        stem, _, last = module.rpartition(".")
        if last == "dense":
            ours[f"{stem}.o_proj.{kind}"] = tensor
        elif last == "query_key_value":
            dense = state[name.removesuffix(f"query_key_value.{kind}") + "dense.weight"]
            keys = (len(tensor) - dense.shape[1]) // 2
            split = tensor.split([dense.shape[1], keys, keys])
            for letter, rows in zip("qkv", split, strict=True):
                ours[f"{stem}.{letter}_proj.{kind}"] = rows.clone()
        else:
            ours[f"{module}.{kind}"] = tensor
    return ours


def _copied(linear: nn.Linear, *, bias: bool) -> nn.Linear:
    """Return a copy of a linear layer, with a zero bias if `bias` is true."""
    copy = deepcopy(linear)
    if bias:
        copy.bias = nn.Parameter(copy.weight.new_zeros(copy.out_features))
    return copy


def _route(
    _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Compute the routing once for all layers.

    An attention mask is always passed: without one, transformers interprets positions that are not
    consecutive as packed sequences.
    """
    vision_bt = options.pop("vision_mask")
    if options.get("attention_mask") is None:
        past = options.get("past_key_values")
        cached = 0 if past is None else past.get_seq_length()
        shape = (len(vision_bt), cached + vision_bt.shape[1])
        options["attention_mask"] = torch.ones(shape, dtype=torch.long, device=vision_bt.device)
    return args, options | {"routing": Routing.of(vision_bt)}
