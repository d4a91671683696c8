"""Specs of LLM backbones (survey §2.3).

Every spec says whether it is an encoder-decoder (`seq2seq`), whether it is a prefix LM, whose
context is bidirectional and passed as a mask (`prefix_lm`), and whether several samples may be
packed into one sequence and separated by their position ids (`supports_packing`). Sequences may be
longer than `max_positions` only with `relative_positions`. `template` is the format of dialogues;
None is the chat template of the checkpoint that `weights` names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import TINY_POSITIONS, TINY_VOCABULARY
from model.spec.chat_template import ChatTemplate
from model.spec.hf_backbones import HfCausal, HfSeq2Seq


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A causal LM of LLaMA's architecture (Touvron et al. 2023): LLaMA, LLaMA-2, Vicuna.

    It also stands in for Chinchilla, whose weights and architecture are unpublished.
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
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tied_embeddings: bool = False
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = True
    relative_positions: ClassVar[bool] = False

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
    """OPT, a causal language model with learned position embeddings (Zhang et al. 2022, *OPT*).

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
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = False  # transformers ignores its position ids in masks
    relative_positions: ClassVar[bool] = False

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
    """T5 v1.1's encoder-decoder: Flan-T5 (Chung et al. 2022), UL2 (Tay et al. 2022).

    Its feed-forward layers are gated and its output matrix is not tied to the embeddings
    (Raffel et al. 2020, and the release notes of T5 v1.1).

    Args:
        layers: of the encoder; the decoder has as many.
        head_width: of one attention head; heads · head_width may differ from the width.
        activation: of the gate: `gelu_new` in Flan-T5, which BLIP-2 runs with the exact `gelu`;
            `silu` in UL2.
        max_positions: of its training; its relative positions impose no limit.
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
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = True
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = False
    relative_positions: ClassVar[bool] = True

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
        weights: the published checkpoint with its original names, e.g. `Qwen/Qwen-7B`, or a folder.
        mlp_width: of the gate and of the up projection: half the `intermediate_size` of its
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
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = True
    relative_positions: ClassVar[bool] = False

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
    """ChatGLM2 and ChatGLM3: causal, multi-query, rotary on half of each head (Zeng et al. 2022).

    Args:
        weights: published checkpoint with original names, e.g. `THUDM/chatglm2-6b`, or a folder.
        kv_heads: number of key-value heads.
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
    norm_eps: float = 1e-5
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = True
    relative_positions: ClassVar[bool] = False

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

    A prefix LM: attention is bidirectional within the context, which is everything before the
    answer. Each token has two positions: one in the context, one in the answer.
    """

    kind: Literal["chatglm"] = "chatglm"
    weights: str = "THUDM/chatglm-6b"
    vocabulary: int = 130_528
    width: int = 4096
    mlp_width: int = 16_384
    layers: int = 28
    heads: int = 32
    max_positions: int = 2048
    norm_eps: float = 1e-5
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = True
    supports_packing: ClassVar[bool] = False
    relative_positions: ClassVar[bool] = False

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
    """A stand-in for PaLM, whose weights are unpublished, in its published architecture.

    Attention and feed-forward layers run in parallel, all heads share one key and value, no layer
    has a bias, and input and output embeddings are tied (Chowdhery et al. 2022, §2).
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
    template: ChatTemplate | None = None

    seq2seq: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = True
    relative_positions: ClassVar[bool] = False

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


Backbone = Llama | Opt | T5 | Qwen | Glm | ChatGlm | Palm | HfCausal | HfSeq2Seq
