"""Specs of backbones that transformers' Auto classes build, with their configurations.

The configuration is the checkpoint's own `config.json`, without what says nothing about the model:
all sizes are read from it, so that no field repeats another. `model.compose` makes such a spec from
a folder or a hub name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from model.spec.base import TINY_POSITIONS, TINY_VOCABULARY, SpecError
from model.spec.chat_template import ChatTemplate

WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_WIDTH = ("head_dim", "d_kv")
MLP_WIDTH = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "ffn_hidden_size",
    "encoder_ffn_dim",
)
VOCABULARY = ("vocab_size",)
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of sizes in the configurations of transformers' classes, the most common first."""

REQUIRED = (WIDTH, LAYERS, HEADS, VOCABULARY)
"""Sizes that every configuration has to name."""

_TINY_WINDOW = 4
"""Of sliding-window attention; a few words are longer, so that it matters in a tiny model, too."""

_TINY_SIZES: Mapping[str, int] = {
    **dict.fromkeys(WIDTH, 64),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(HEAD_WIDTH, 16),
    **dict.fromkeys(MLP_WIDTH, 128),
    **dict.fromkeys(VOCABULARY, TINY_VOCABULARY),
    **dict.fromkeys(POSITIONS, TINY_POSITIONS),
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "query_pre_attn_scalar": 16,
    "word_embed_proj_dim": 64,
}

_TINY_LIMITS: Mapping[str, int] = {
    "sliding_window": _TINY_WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}

_TINY_TOKENS: Mapping[str, int] = {
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of the byte tokenizer."""

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


@dataclass(frozen=True, kw_only=True)
class _Configured:
    """The sizes of a backbone, from its transformers configuration.

    Args:
        weights: a hub name or a folder of a transformers checkpoint; `FOLDER/FILE.gguf` or
            `OWNER/NAME:FILE.gguf` for a GGUF file.
        config: the fields of its `config.json`, `model_type` among them.
        template: the chat template; None for the checkpoint's own.
    """

    kind: str
    weights: str
    config: dict[str, Any] = field(hash=False)
    template: ChatTemplate | None = None

    prefix_lm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError where the configuration lacks its class or a size."""
        if not isinstance(self.config.get("model_type"), str):
            raise SpecError("backbone: config has no model_type; want that of a config.json")
        for names in REQUIRED:
            self._size(names)

    def tiny(self) -> Self:
        """Return the same architecture with small sizes."""
        return replace(self, config=tiny_config(self.config))

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture, such as `qwen3`."""
        return str(self.config["model_type"])

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self._size(WIDTH)

    @property
    def layers(self) -> int:
        """Number of layers; of a seq2seq backbone, in its encoder."""
        return self._size(LAYERS)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self._size(HEADS)

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads; fewer than heads with grouped-query attention."""
        return self._size(KEY_VALUE_HEADS, self.heads)

    @property
    def head_width(self) -> int:
        """Width of one head; heads · head_width may differ from the width."""
        return self._size(HEAD_WIDTH, self.width // self.heads)

    @property
    def mlp_width(self) -> int:
        """Width inside the feed-forward layers."""
        return self._size(MLP_WIDTH, 4 * self.width)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding matrix."""
        return self._size(VOCABULARY)

    @property
    def max_positions(self) -> int:
        """Longest sequence of its training; T5's relative positions impose no limit."""
        return self._size(POSITIONS, 512)

    def _size(self, names: Sequence[str], default: int | None = None) -> int:
        size = _first(self.config, names) or default
        if size is None:
            raise SpecError(
                f"backbone: config of model_type {self.model_type!r} has no {names[0]!r}"
            )
        return size


@dataclass(frozen=True, kw_only=True)
class HfCausal(_Configured):
    """Any causal language model of transformers: Llama 3, Qwen3, Gemma 3, Mistral, Phi, OLMo.

    Args:
        weights, config, template: see `_Configured`.
        supports_packing: whether its class keeps samples apart whose position ids restart, which
            `model.compose` finds out by comparing packed with separate samples.
    """

    kind: Literal["hf_causal"] = "hf_causal"
    supports_packing: bool = False

    seq2seq: ClassVar[bool] = False
    relative_positions: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class HfSeq2Seq(_Configured):
    """Any encoder-decoder of transformers whose answers start with padding: T5 and its kin.

    Args:
        weights, config, template: see `_Configured`.
    """

    kind: Literal["hf_seq2seq"] = "hf_seq2seq"

    seq2seq: ClassVar[bool] = True
    supports_packing: ClassVar[bool] = False
    relative_positions: ClassVar[bool] = True


def tiny_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of the same architecture with small sizes.

    Grouped-query attention, sliding windows, experts and both kinds of layers remain where there
    are any.
    """
    tiny = deepcopy(dict(config))
    heads = _first(config, HEADS)
    head_width = _first(config, HEAD_WIDTH) or _first(config, WIDTH) // max(1, heads)
    for name, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            if name in _TINY_SIZES:
                tiny[name] = _TINY_SIZES[name]
            elif name in _TINY_LIMITS:
                tiny[name] = min(value, _TINY_LIMITS[name])
            elif name in KEY_VALUE_HEADS:
                tiny[name] = 4 if value == heads else min(value, 2)
        if name in _TINY_TOKENS:  # others may be beyond the tiny vocabulary
            tiny[name] = None if value is None else _TINY_TOKENS[name]
        elif isinstance(value, list) and name in _PER_LAYER:
            tiny[name] = [value[0], value[-1]]
        elif name in ("rope_parameters", "rope_scaling"):
            tiny[name] = _tiny_rope(value, head_width)
    return tiny


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return the first of these fields that is a number; 0 if none is."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _tiny_rope(value: Any, head_width: int) -> Any:  # noqa: ANN401 -- parsed JSON
    """Return RoPE's parameters with as many factors as a tiny head has frequencies."""
    if isinstance(value, dict):
        return {name: _tiny_rope(item, head_width) for name, item in value.items()}
    if isinstance(value, list):
        return value[: len(value) * _TINY_SIZES["head_dim"] // head_width]
    return value
