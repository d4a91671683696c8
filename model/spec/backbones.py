"""LLM backbones and their chat templates (survey §2.3).

Every spec says of itself whether it is an encoder-decoder (`seq2seq`), whether its forward pass
wants to know which positions are context (`prefix_mask`): those see each other in both directions,
and whether several samples may stand in one row, told apart by their positions (`packs`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

TINY_VOCABULARY = 384
TINY_POSITIONS = 1024


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How turns become one text; `{text}` stands for a turn's text.

    `{round}` in a user's turn is the exchange's number, from 1 on. A template's own texts may hold
    special tokens by their names (`<|im_start|>`), which the tokenizer reads as such; a turn's
    text may not.

    Args:
        system: the instruction before the first turn, unless a sample brings one of its own.
        around_system: what stands around a system text that is not empty.
        user, assistant: a turn of each.
        user_after_system: the first user's turn where a system text stands before it, if it
            differs: LLaMA-2 puts the system text inside the first turn.
        end: what ends an answer and is a target with it; None for the tokenizer's own
            end-of-sequence token.
        after: what stands between an answer's end and the next user's turn.
    """

    system: str = ""
    around_system: str = "{text}"
    user: str = "USER: {text} "
    user_after_system: str | None = None
    assistant: str = "ASSISTANT: {text}"
    end: str | None = None
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A LLaMA-shaped causal language model (Touvron et al. 2023): LLaMA, LLaMA-2, Vicuna.

    It is the stand-in for Chinchilla, too, whose weights and layers are unpublished.
    """

    kind: Literal["llama"] = "llama"
    weights: str
    vocabulary: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    max_positions: int
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    tied_embeddings: bool = False
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = True

    def tiny(self) -> Llama:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            kv_heads=4 if self.kv_heads == self.heads else 2,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class Opt:
    """OPT, a causal language model with learned positions (Zhang et al. 2022, *OPT*).

    Args:
        width, mlp_width: of the residual stream and inside the feed-forward layers.
        dropout: 0.1 in OPT's own training; none where the backbone is frozen.
    """

    kind: Literal["opt"] = "opt"
    weights: str
    vocabulary: int = 50_272
    width: int
    mlp_width: int
    layers: int
    heads: int
    max_positions: int = 2048
    dropout: float = 0.0
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = False  # transformers' masks do not look at its positions

    def tiny(self) -> Opt:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class T5:
    """An encoder-decoder of T5 v1.1's shape: Flan-T5 (Chung et al. 2022), UL2 (Tay et al. 2022).

    Its feed-forward layers are gated and its output matrix is not tied to the embeddings
    (Raffel et al. 2020, and the release notes of T5 v1.1).

    Args:
        layers: of the encoder; the decoder has as many.
        head_width: of one attention head; heads · head_width need not be the width.
        activation: of the gate: Flan-T5's is `gelu_new`, though BLIP-2 runs it with the exact
            `gelu`; UL2's is `silu`.
        max_positions: what it was trained with; its relative positions set no limit.
        dropout: 0.1 in T5's own training; none where the backbone is frozen.
    """

    kind: Literal["t5"] = "t5"
    weights: str
    vocabulary: int = 32_128
    width: int
    mlp_width: int
    layers: int
    heads: int
    head_width: int = 64
    activation: Literal["gelu_new", "gelu", "silu"] = "gelu_new"
    max_positions: int = 512
    dropout: float = 0.0
    template: ChatTemplate

    seq2seq: ClassVar[bool] = True
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def tiny(self) -> T5:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            head_width=16,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class Qwen:
    """Qwen, the first version (Bai et al. 2023, *Qwen technical report*): LLaMA with QKV biases.

    Args:
        weights: the published checkpoint in its own names, e.g. `Qwen/Qwen-7B`, or a folder.
        mlp_width: of the gate and of the gated layer: half the `intermediate_size` of its
            published configuration.
    """

    kind: Literal["qwen"] = "qwen"
    weights: str
    vocabulary: int = 151_936
    width: int
    mlp_width: int
    layers: int
    heads: int
    max_positions: int = 8192
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = True

    def tiny(self) -> Qwen:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class Glm:
    """ChatGLM2 and ChatGLM3: causal, multi-query, rotary over half of a head (Zeng et al. 2022).

    Args:
        weights: the published checkpoint in its own names, e.g. `THUDM/chatglm2-6b`, or a folder.
        kv_heads: groups of heads that share keys and values.
    """

    kind: Literal["glm"] = "glm"
    weights: str
    vocabulary: int = 65_024
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int = 2
    max_positions: int = 32_768
    norm_epsilon: float = 1e-5
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = True

    def tiny(self) -> Glm:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            kv_heads=2,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class ChatGlm:
    """ChatGLM-6B, the first version (Du et al. 2022, *GLM*; Zeng et al. 2022, *GLM-130B*).

    What comes before the answer, the context, sees itself in both directions, and positions are
    pairs: of the token in the context, and of the token in the answer.
    """

    kind: Literal["chatglm"] = "chatglm"
    weights: str = "THUDM/chatglm-6b"
    vocabulary: int = 130_528
    width: int = 4096
    mlp_width: int = 16_384
    layers: int = 28
    heads: int = 32
    max_positions: int = 2048
    norm_epsilon: float = 1e-5
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = True
    prefix_mask: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    def tiny(self) -> ChatGlm:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            max_positions=TINY_POSITIONS,
        )


@dataclass(frozen=True, kw_only=True)
class Palm:
    """A stand-in for PaLM, whose weights are unpublished, in its published shape.

    Attention and feed-forward layers stand side by side, all heads share one key and value, no
    layer has a bias, and the embeddings are the output matrix (Chowdhery et al. 2022, §2).
    """

    kind: Literal["palm"] = "palm"
    weights: str
    vocabulary: int = 256_000
    width: int
    mlp_width: int
    layers: int
    heads: int
    head_width: int = 256
    max_positions: int = 2048
    template: ChatTemplate

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    prefix_mask: ClassVar[bool] = False
    packs: ClassVar[bool] = True

    def tiny(self) -> Palm:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            vocabulary=TINY_VOCABULARY,
            width=64,
            mlp_width=128,
            layers=2,
            heads=4,
            head_width=16,
            max_positions=TINY_POSITIONS,
        )


Backbone = Llama | Opt | T5 | Qwen | Glm | ChatGlm | Palm
