"""The Q-Former of BLIP-2 and InstructBLIP with a linear head; its layers are transformers'.

Li et al. 2023, *BLIP-2* (arXiv:2301.12597), §3; Dai et al. 2023, *InstructBLIP*
(arXiv:2305.06500), §2.3.

Shapes: b media, f segments, x media or segments, n tokens of an encoder, d the encoder's width,
q queries, l text positions, s all positions (q, l or q + l), w the Q-Former's width, k tokens of a
medium, v the backbone's width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from model.input_projectors.attention import initialise
from model.input_projectors.latents import Latents
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.qformer import QFormer
from model.text import TextIds
from model.weights import Weights, load_published


class QueryingTransformer(nn.Module):
    """Queries, BERT layers with cross-attention and, if the spec says so, the text branch.

    Its three forward modes are those of BLIP-2's stage 1 (figure 2): queries, text, or both.
    """

    def __init__(self, spec: QFormer, width_in: int) -> None:
        super().__init__()
        self.queries = Latents(spec.queries, spec.width)
        if spec.extra_queries:
            self.extra_queries: Latents | None = Latents(spec.extra_queries, spec.width)
        else:
            self.extra_queries = None
        self.words = TextEmbeddings(spec) if spec.has_text else None
        self.norm = nn.LayerNorm(width_in) if spec.norm_features else None
        self.bert = Blip2QFormerModel(qformer_config(spec, width_in))
        self.bert.apply(initialise)

    def forward(self, features_xnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return the queries (x, q, w) after attending to features (x, n, d) and any text."""
        if text is None:
            return self._run_bert(self._queries(features_xnd), features_xnd, None)
        return self.joint(features_xnd, text)[0]

    def read_text(self, text: TextIds) -> Tensor:
        """Return hidden states (x, l, w) of the text alone; the first is BERT's `[CLS]`."""
        states_xlw: Tensor = self.bert(
            query_embeds=self._embed(text), query_length=0, attention_mask=text.mask_bl
        ).last_hidden_state
        return states_xlw

    def joint(
        self, features_xnd: Tensor, text: TextIds, *, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states of queries (x, q, w) and text (x, l, w) that attend to each other.

        Args:
            features_xnd: (x, n, d); only the queries attend to them.
            text: one row per row of features.
            causal: BLIP-2's multimodal causal mask: queries attend to queries only, a text token to
                the queries and the text up to itself. Otherwise attention is bidirectional.
        """
        queries_xqw = self._queries(features_xnd)
        count = queries_xqw.shape[1]
        mask = joint_mask(text.mask_bl, count, queries_xqw.dtype, causal=causal)
        embedded_xsw = torch.cat([queries_xqw, self._embed(text)], dim=1)
        states_xsw = self._run_bert(embedded_xsw, features_xnd, mask, count)
        return states_xsw[:, :count], states_xsw[:, count:]

    def _run_bert(
        self,
        embedded_xsw: Tensor,
        features: Tensor,
        mask: Tensor | None,
        queries: int | None = None,
    ) -> Tensor:
        states_xsw: Tensor = self.bert(
            query_embeds=embedded_xsw,
            query_length=queries,
            attention_mask=mask,
            encoder_hidden_states=features if self.norm is None else self.norm(features),
        ).last_hidden_state
        return states_xsw

    def _queries(self, features_xnd: Tensor) -> Tensor:
        queries_xqw: Tensor = self.queries(len(features_xnd))
        if self.extra_queries is None:
            return queries_xqw
        return torch.cat([queries_xqw, self.extra_queries(len(features_xnd))], dim=1)

    def _embed(self, text: TextIds) -> Tensor:
        if self.words is None:
            raise ValueError("this Q-Former has no text branch: set instruction or text_branch")
        embedded_xlw: Tensor = self.words(text.ids_bl)
        return embedded_xlw


class TextEmbeddings(nn.Module):
    """Word and position embeddings; the Q-Former's first norm follows."""

    def __init__(self, spec: QFormer) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocabulary, spec.width)
        self.position_embeddings = nn.Embedding(spec.max_positions, spec.width)
        self.apply(initialise)

    def forward(self, ids_xl: Tensor) -> Tensor:
        """Return embeddings (x, l, w)."""
        positions_l = torch.arange(ids_xl.shape[1], device=ids_xl.device)
        embedded_xlw: Tensor = self.word_embeddings(ids_xl) + self.position_embeddings(positions_l)
        return embedded_xlw


class QFormerProjector(nn.Module):
    """A Q-Former and a linear head to the backbone's width."""

    def __init__(self, spec: QFormer, shape: ProjectorShape) -> None:
        super().__init__()
        self.spec = spec
        self.qformer = QueryingTransformer(spec, shape.width_in)
        self.head = nn.Linear(spec.width, shape.width_out)
        initialise(self.head)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v); an instruction is repeated for every segment."""
        if self.spec.joint:
            features_bfnd = features_bfnd.flatten(1, 2).unsqueeze(1)
        if not self.spec.instruction:
            text = None
        elif text is None:
            raise ValueError("an instruction-aware Q-Former needs the instruction")
        else:
            text = repeat_text(text, features_bfnd.shape[1])
        states_bkw = project_segments(partial(self.qformer, text=text), features_bfnd)
        tokens_bkv: Tensor = self.head(states_bkw)
        return tokens_bkv


def build(spec: QFormer, shape: ProjectorShape, *, weights: Weights = "random") -> QFormerProjector:
    """Return a projector with a new head, and a new Q-Former unless the spec names weights."""
    projector = QFormerProjector(spec, shape)
    if weights == "pretrained":
        load(projector.qformer, spec)
    return projector


def load(module: QueryingTransformer, spec: QFormer) -> None:
    """Load the published weights that the spec names, if any; extra queries are new.

    Raises:
        SpecError: there are no such weights, or their shapes differ.
    """
    if not spec.weights:
        return
    own = module.state_dict()
    extra = {name: tensor for name, tensor in own.items() if name.startswith("extra_queries.")}
    load_published(module, spec.weights, lambda state: {**convert_state_dict(state, spec), **extra})


def joint_mask(mask_xl: Tensor, queries: int, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """Return the additive attention mask (x, 1, q + l, q + l) of queries and text.

    Transformers would also accept (x, q + l), but then synchronises with the device to check
    whether anything is masked.

    Args:
        mask_xl: 1 for text tokens, 0 for padding.
        queries: number of queries before the text.
        dtype: of the hidden states.
        causal: whether it is BLIP-2's multimodal causal mask, see `QueryingTransformer.joint`.
    """
    length = queries + mask_xl.shape[1]
    attends_ss = torch.ones(length, length, dtype=torch.bool, device=mask_xl.device)
    if causal:
        attends_ss = attends_ss.tril()
        attends_ss[:queries, :queries] = True
    real_xs = torch.cat([mask_xl.new_ones(len(mask_xl), queries), mask_xl], dim=1).bool()
    attends_x1ss = attends_ss & real_xs[:, None, None, :]
    zeros = torch.zeros(attends_x1ss.shape, dtype=dtype, device=mask_xl.device)
    return zeros.masked_fill(~attends_x1ss, torch.finfo(dtype).min)


def repeat_text(text: TextIds, segments: int) -> TextIds:
    """Return the texts with each row repeated `segments` times."""
    return TextIds(
        ids_bl=text.ids_bl.repeat_interleave(segments, 0),
        mask_bl=text.mask_bl.repeat_interleave(segments, 0),
    )


def convert_state_dict(state: Mapping[str, Any], spec: QFormer) -> dict[str, Tensor]:
    """Rename a published Q-Former's tensors to those of `QueryingTransformer`.

    Args:
        state: of LAVIS (`Qformer.bert.…`, possibly under `model`), or of transformers' Blip2 and
            InstructBlip models (`qformer.…`); tensors of other components (encoder, backbone,
            heads) are dropped.
        spec: whether the text branch and the norm of the features are dropped, too.
    """
    named: Mapping[str, Tensor] = state.get("model", state)
    renamed = {_rename(name): tensor for name, tensor in named.items()}
    return {
        name: tensor
        for name, tensor in renamed.items()
        if name
        and (spec.has_text or not in_text_branch(name))
        and (spec.norm_features or not name.startswith("norm."))
    }


_LAVIS = re.compile(r"^Qformer\.bert\.")
_WORDS = re.compile(r"^(?:qformer\.)?embeddings\.((?:word|position)_embeddings\.)")
_FEATURES = re.compile(r"^(?:ln_vision|vision_model\.post_layernorm)\.")
_NORM = re.compile(r"^qformer\.(?:embeddings\.)?(?:LayerNorm|layernorm)\.")
_TEXT = re.compile(r"^words\.|\.(?:intermediate|output)\.(?:dense|LayerNorm)\.")


def _rename(name: str) -> str:
    """Return our name, or an empty one for a tensor of another component."""
    name = _LAVIS.sub("qformer.", name).replace("attention.self.", "attention.attention.")
    if name == "query_tokens":
        return "queries.tokens"
    if name.endswith("position_ids"):
        return ""
    name = _NORM.sub("bert.layernorm.", _WORDS.sub(r"words.\1", name))
    name = _FEATURES.sub("norm.", name)
    name = re.sub(r"^qformer\.encoder\.", "bert.encoder.", name)
    return name if name.startswith(("bert.", "words.", "norm.")) else ""


def in_text_branch(name: str) -> bool:
    """Return whether a tensor is of the text branch: its embeddings or feed-forward layers."""
    return bool(_TEXT.search(name)) and "attention." not in name


def qformer_config(spec: QFormer, width_in: int) -> Blip2QFormerConfig:
    """Return transformers' configuration of a spec."""
    return Blip2QFormerConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_width,
        hidden_dropout_prob=spec.dropout,
        attention_probs_dropout_prob=spec.dropout,
        max_position_embeddings=spec.max_positions,
        cross_attention_frequency=spec.cross_attention_frequency,
        encoder_hidden_size=width_in,
        use_qformer_text_input=spec.has_text,
    )
