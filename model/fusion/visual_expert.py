"""CogVLM's visual expert: weights of the media's own in every layer (Wang et al. 2023, §2.1).

Shapes: b sequences, t positions of this call, s positions of this call and all before, d width,
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

from model.spec.fusion import VisualExpert


@dataclass(frozen=True)
class Routing:
    """Which positions go to which expert.

    Args:
        order_n: all positions of all sequences, text first.
        back_n: where each stands in that order.
        texts: how many are text.
    """

    order_n: Tensor
    back_n: Tensor
    texts: int

    @classmethod
    def of(cls, vision_bt: Tensor) -> Routing:
        """Return the routing of a mask that is true where a position is the vision expert's."""
        order_n = torch.argsort(vision_bt.flatten().long(), stable=True)
        return cls(order_n, torch.argsort(order_n), int((~vision_bt).sum()))

    def __call__(self, language: nn.Module, vision: nn.Module, states_btd: Tensor) -> Tensor:
        """Return what each position's own expert makes of it, (b, t, d').

        Both are called whatever the positions: under ZeRO-3 each is a collective.
        """
        sorted_nd = states_btd.flatten(0, 1)[self.order_n]
        made_nd = torch.cat([language(sorted_nd[: self.texts]), vision(sorted_nd[self.texts :])])
        return made_nd[self.back_n].unflatten(0, states_btd.shape[:2])


class Projections(nn.Module):
    """The vision expert's linear layers around attention, which begin as the language's."""

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
        """Return what each position gathers (b, t, d), and the attention's weights if any."""
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
            self.config._attn_implementation, eager_attention_forward
        )
        gathered_bthc, weights = attend(
            self, q_bhtc, k_bhsc, v_bhsc, attention_mask, scaling=self.scaling, **more
        )
        return routing(self.o_proj, self.expert.o_proj, gathered_bthc.flatten(2)), weights


class ExpertLayer(GradientCheckpointingLayer):
    """A LLaMA layer with a vision expert beside its attention's and its feed-forward's weights."""

    def __init__(self, layer: LlamaDecoderLayer, *, bias: bool) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = ExpertAttention(layer.self_attn, bias=bias)
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp
        self.expert_mlp = deepcopy(layer.mlp)

    def forward(self, hidden_btd: Tensor, *, routing: Routing, **more: Any) -> Tensor:  # noqa: ANN401
        """Return the states (b, t, d) after this layer."""
        gathered_btd, _ = self.self_attn(self.input_layernorm(hidden_btd), routing=routing, **more)
        hidden_btd = hidden_btd + gathered_btd
        normed_btd = self.post_attention_layernorm(hidden_btd)
        return hidden_btd + routing(self.mlp, self.expert_mlp, normed_btd)


def add(backbone: PreTrainedModel, spec: VisualExpert) -> None:
    """Give every layer of a LLaMA a vision expert, in place; it begins as the language's weights.

    Its decoder then wants `vision_mask`, and `position_ids` where they are shared; see `arrange`.
    """
    decoder = backbone.get_decoder()
    for number, layer in enumerate(decoder.layers):
        decoder.layers[number] = ExpertLayer(layer, bias=spec.bias)
    decoder.register_forward_pre_hook(_route, with_kwargs=True)


def arrange(
    spec: VisualExpert, attention_bt: Tensor, places: Sequence[tuple[Tensor, int]]
) -> dict[str, Tensor]:
    """Return the decoder's arguments for media among the tokens.

    The first and the last token of a medium mark its beginning and its end. The last is the
    language expert's, and both have positions of their own, while all between share one.

    Args:
        spec: whether they do.
        attention_bt: 1 where there is a token.
        places: per kind of media the places of its tokens (b, t), and how many tokens one has.

    Returns:
        `vision_mask` (b, t), true where the vision expert is asked; `position_ids` (b, t).
    """
    vision_bt = torch.zeros_like(attention_bt, dtype=torch.bool)
    steps_bt = attention_bt.long()
    for mask_bt, tokens in places:
        within_bt = (mask_bt.long().cumsum(1) - 1) % tokens
        vision_bt = vision_bt | (mask_bt & (within_bt < tokens - 1))
        steps_bt = steps_bt.masked_fill(mask_bt & (within_bt > 1) & (within_bt < tokens - 1), 0)
    if not spec.shared_position:
        return {"vision_mask": vision_bt}
    return {"vision_mask": vision_bt, "position_ids": (steps_bt.cumsum(1) - 1).clamp(min=0)}


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the language model of a published CogVLM checkpoint, under our names.

    Its `query_key_value` holds all queries, then keys, then values. `model.vision.*`, the encoder,
    is left out.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("model.vision.") or name.endswith("rotary_emb.inv_freq"):
            continue
        place, _, kind = name.rpartition(".")
        place = place.replace("self_attn.language_expert_", "self_attn.")
        place = place.replace("self_attn.vision_expert_", "self_attn.expert.")
        place = place.replace("mlp.language_mlp", "mlp").replace("mlp.vision_mlp", "expert_mlp")
        stem, _, last = place.rpartition(".")
        if last == "dense":
            ours[f"{stem}.o_proj.{kind}"] = tensor
        elif last == "query_key_value":
            dense = state[name.removesuffix(f"query_key_value.{kind}") + "dense.weight"]
            keys = (len(tensor) - dense.shape[1]) // 2
            pieces = tensor.split([dense.shape[1], keys, keys])
            for part, piece in zip("qkv", pieces, strict=True):
                ours[f"{stem}.{part}_proj.{kind}"] = piece.clone()
        else:
            ours[f"{place}.{kind}"] = tensor
    return ours


def _copied(linear: nn.Linear, *, bias: bool) -> nn.Linear:
    """Return a copy, with a bias of zeros if there is to be one."""
    copy = deepcopy(linear)
    if bias:
        copy.bias = nn.Parameter(copy.weight.new_zeros(copy.out_features))
    return copy


def _route(
    _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the routing once for all layers.

    A mask there must be: without one, transformers takes positions that do not count on for those
    of packed sequences.
    """
    vision_bt = options.pop("vision_mask")
    if options.get("attention_mask") is None:
        past = options.get("past_key_values")
        seen = 0 if past is None else past.get_seq_length()
        shape = (len(vision_bt), seen + vision_bt.shape[1])
        options["attention_mask"] = torch.ones(shape, dtype=torch.long, device=vision_bt.device)
    return args, options | {"routing": Routing.of(vision_bt)}
