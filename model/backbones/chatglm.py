"""ChatGLM-6B, the first version (Du et al. 2022, *GLM*; Zeng et al. 2022, *GLM-130B*).

Unlike its successors it has two positions per token (GLM §2.3), bidirectional attention within the
context, and scaled residuals that start after the norm, in the manner of DeepNorm (GLM-130B §2.1).

Shapes: b sequences, t positions of this call, s positions including cached ones, d width, h heads,
c width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from model.backbones.checkpoint import load_renamed
from model.spec.backbones import ChatGlm
from model.weights import Weights

Rotation = tuple[Tensor, Tensor]


class ChatGlmConfig(PretrainedConfig):
    """Sizes, with transformers' usual names."""

    model_type = "chatglm"

    def __init__(
        self,
        vocab_size: int = 130_528,
        hidden_size: int = 4096,
        intermediate_size: int = 16_384,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 32,
        layer_norm_eps: float = 1e-5,
        **more: Any,  # noqa: ANN401 -- transformers'
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = 0.02
        super().__init__(**{"tie_word_embeddings": True} | more)


class Attention(nn.Module):
    """Self-attention; one linear layer holds, head by head, queries, keys and values."""

    def __init__(self, config: ChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.layer_idx = layer
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_btd: Tensor,
        *,
        attention_mask: Tensor,
        position_embeddings: Rotation,
        past_key_values: Any | None = None,  # noqa: ANN401 -- transformers' Cache
        **_: object,
    ) -> tuple[Tensor, None]:
        """Return the attention output (b, t, d); `attention_mask` is (b, 1, t, s), bool."""
        mixed = self.query_key_value(hidden_btd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_bhtc, k_bhtc, v_bhtc = mixed.chunk(3, dim=-1)
        q_bhtc = rotate(q_bhtc, position_embeddings)
        k_bhsc, v_bhsc = rotate(k_bhtc, position_embeddings), v_bhtc
        if past_key_values is not None:
            k_bhsc, v_bhsc = past_key_values.update(k_bhsc, v_bhsc, self.layer_idx)
        out_bhtc = F.scaled_dot_product_attention(q_bhtc, k_bhsc, v_bhsc, attn_mask=attention_mask)
        return self.dense(out_bhtc.transpose(1, 2).flatten(2)), None


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh approximation) between them."""

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_btd: Tensor) -> Tensor:
        """Return the output (b, t, d)."""
        new_btd: Tensor = self.dense_4h_to_h(
            F.gelu(self.dense_h_to_4h(hidden_btd), approximate="tanh")
        )
        return new_btd


class Block(GradientCheckpointingLayer):
    """Attention, then feed-forward, each added to its scaled normed input."""

    def __init__(self, config: ChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.scale = (2 * config.num_hidden_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, hidden_btd: Tensor, **more: Any) -> Tensor:  # noqa: ANN401 -- for attention
        """Return the hidden states (b, t, d) after this layer."""
        normed_btd = self.input_layernorm(hidden_btd)
        attended_btd, _ = self.attention(normed_btd, **more)
        normed_btd = self.post_attention_layernorm(self.scale * normed_btd + attended_btd)
        new_btd: Tensor = self.scale * normed_btd + self.mlp(normed_btd)
        return new_btd


class ChatGlmPreTrained(PreTrainedModel):
    """Class attributes that transformers requires."""

    config_class = ChatGlmConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]


class ChatGlmModel(ChatGlmPreTrained):
    """Everything but the output matrix."""

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings of tokens."""
        return self.word_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        past_key_values: Any | None = None,  # noqa: ANN401 -- transformers' Cache
        use_cache: bool | None = None,
        **more: Any,  # noqa: ANN401 -- for the layers
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states (b, t, d).

        Args:
            input_ids: (b, t), unless embeddings are given.
            inputs_embeds: (b, t, d).
            attention_mask: (b, s), 1 for tokens.
            context_mask: (b, ≤ s), true before the answer: `[gMASK]` is the last token of the
                context and `<sop>` the first of the answer; later positions are no context.
            past_key_values: transformers' cache of previous calls.
            use_cache: whether to create one.
            **more: passed to the layers.

        Raises:
            ValueError: no context mask.
        """
        if context_mask is None:
            raise ValueError("ChatGLM-6B requires a context_mask")
        hidden_btd = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        shape_bs = (len(hidden_btd), before + hidden_btd.shape[1])
        if attention_mask is None:
            attention_mask = torch.ones(shape_bs, device=hidden_btd.device)
        real_bs = attention_mask.bool()
        context_bs = real_bs & F.pad(context_mask, (0, shape_bs[1] - context_mask.shape[1]))
        width = self.config.hidden_size // self.config.num_attention_heads // 2
        rotation = angles(real_bs, context_bs, before, width)
        for layer in self.layers:
            hidden_btd = layer(
                hidden_btd,
                attention_mask=prefix_mask(real_bs, context_bs, before),
                position_embeddings=tuple(wave.to(hidden_btd.dtype) for wave in rotation),
                past_key_values=past_key_values,
                **more,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_btd), past_key_values=past_key_values
        )


class ChatGlmForCausalLM(ChatGlmPreTrained, GenerationMixin):
    """ChatGLM-6B with its output matrix, which is tied to the embeddings."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "transformer.word_embeddings.weight"
    }

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGlmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> ChatGlmModel:
        """Return everything but the output matrix."""
        return self.transformer

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings of tokens."""
        return self.transformer.word_embeddings

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output matrix."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        past_key_values: Any | None = None,  # noqa: ANN401 -- transformers' Cache
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **more: Any,  # noqa: ANN401 -- for the layers
    ) -> CausalLMOutputWithPast:
        """Return the logits (b, t, v), or only those of the last positions; see `ChatGlmModel`."""
        states = self.transformer(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            context_mask=context_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **more,
        )
        hidden_btd = states.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden_btd), past_key_values=states.past_key_values
        )


def prefix_mask(real_bs: Tensor, context_bs: Tensor, before: int) -> Tensor:
    """Return the mask (b, 1, t, s) of a prefix LM: positions attend to the context and backwards.

    Args:
        real_bs: true for tokens, false for padding.
        context_bs: true in the context.
        before: number of cached positions.
    """
    position_s = torch.arange(real_bs.shape[1], device=real_bs.device)
    causal_ts = position_s <= position_s[before:, None]
    return (real_bs[:, None] & (context_bs[:, None] | causal_ts))[:, None]


def angles(real_bs: Tensor, context_bs: Tensor, before: int, width: int) -> Rotation:
    """Return cosines and sines (b, 1, t, 2 pairs · width) for the two positions of each token.

    The first position counts within the context and then stays constant; the second is 0 in the
    context and counts from 1 in the answer (GLM §2.3). Each rotates one half of a head, of `width`.
    """
    first_bs = (context_bs.long().cumsum(1) - 1).clamp(min=0)
    second_bs = (real_bs & ~context_bs).long().cumsum(1)
    steps = torch.arange(0, width, 2, device=real_bs.device)
    # The published code stores its frequencies in half precision.
    frequencies = (10_000.0 ** (-steps / width)).half().float()
    halves = []
    for positions_bs in (first_bs, second_bs):
        half = positions_bs[:, before:, None].float() * frequencies
        halves += [half, half]
    both = torch.cat(halves, dim=-1)[:, None]
    return both.cos(), both.sin()


def rotate(heads_bhtc: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each half of every head by its own position (Su et al. 2021, *RoFormer*)."""
    cosines, sines = rotation
    a, b, c, d = heads_bhtc.chunk(4, dim=-1)
    return heads_bhtc * cosines + torch.cat([-b, a, -d, c], dim=-1) * sines


def chatglm_config(spec: ChatGlm) -> ChatGlmConfig:
    """Return the configuration of a spec."""
    return ChatGlmConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        layer_norm_eps=spec.norm_eps,
        use_cache=False,
    )


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the published checkpoint that are used; names are unchanged.

    Rotary frequencies are computed; the output matrix is stored although it is tied.
    """
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"
    }


def build(spec: ChatGlm, *, weights: Weights, dtype: torch.dtype) -> ChatGlmForCausalLM:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, or of another shape.
    """
    config = chatglm_config(spec)
    if weights == "random":
        return ChatGlmForCausalLM(config).to(dtype)
    return load_renamed(ChatGlmForCausalLM, spec.weights, config, convert_state_dict, dtype)
