"""The P-Former: predicts soft prompts from which a frozen language model says a sentence.

Jian et al. 2023, *Bootstrapping Vision-Language Learning with Decoupled Language Pre-training*
(arXiv:2307.07063), §3.1. BERT is transformers' own.

Shapes: b sentences, l text positions, w the P-Former's width, k prompts, v the backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from model.input_projectors.attention import initialise
from model.spec import SpecError
from model.spec.pformer import PFormer
from model.text import TextIds
from model.weights import Weights, load_published, load_transformers


class PromptFormer(nn.Module):
    """BERT, a linear layer that expands `[CLS]` to k prompts, then tanh and a linear head."""

    def __init__(self, spec: PFormer, prompts: int, width_out: int) -> None:
        super().__init__()
        self.prompts = prompts
        self.bert = BertModel(bert_config(spec), add_pooling_layer=False)
        self.spread = nn.Linear(spec.width, prompts * spec.width)
        self.mix = nn.Linear(spec.width, spec.width)
        self.head = nn.Linear(spec.width, width_out)
        self.apply(initialise)

    def forward(self, text: TextIds) -> Tensor:
        """Return prompts (b, k, v) of sentences."""
        return self.prompts_of(self.read(text))

    def read(self, text: TextIds) -> Tensor:
        """Return the hidden state (b, w) of the first token, BERT's `[CLS]`."""
        states_blw = self.bert(input_ids=text.ids_bl, attention_mask=text.mask_bl)
        first_bw: Tensor = states_blw.last_hidden_state[:, 0]
        return first_bw

    def prompts_of(self, first_bw: Tensor) -> Tensor:
        """Return the prompts (b, k, v) for the result of `read`."""
        spread_bkw = self.spread(first_bw).unflatten(1, (self.prompts, -1))
        prompts_bkv: Tensor = self.head(torch.tanh(self.mix(spread_bkw)))
        return prompts_bkv


def build(
    spec: PFormer, *, prompts: int, width_out: int, weights: Weights = "random"
) -> PromptFormer:
    """Return a P-Former, new unless the spec names a published one.

    Args:
        spec: its sizes.
        prompts: their number: tokens per medium of the input branch.
        width_out: the backbone's.
        weights: `pretrained` loads published ones if the spec names any.
    """
    module = PromptFormer(spec, prompts, width_out)
    if weights == "pretrained" and spec.weights:
        load_published(module, spec.weights, convert_state_dict)
    return module


def init_from_bert(module: PromptFormer, source: str) -> None:
    """Copy a published BERT (hub name or folder) into a new P-Former.

    Raises:
        SpecError: there are no such weights, or their sizes differ.
    """
    try:
        module.bert.load_state_dict(bert_state(source))
    except RuntimeError as error:
        raise SpecError(f"weights {source!r}: sizes differ from the P-Former's ({error})") from None


def bert_state(source: str) -> dict[str, Tensor]:
    """Return the weights of a published BERT with transformers' names, without its pooler."""
    bert = load_transformers(BertModel, source, add_pooling_layer=False)
    state: dict[str, Tensor] = bert.state_dict()
    return state


def bert_config(spec: PFormer) -> BertConfig:
    """Return transformers' configuration of a spec."""
    return BertConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_width,
        hidden_dropout_prob=spec.dropout,
        attention_probs_dropout_prob=spec.dropout,
        max_position_embeddings=spec.max_positions,
    )


_HEADS = {
    "cls_proj": "spread",
    "pooler.0": "mix",
    "opt_proj": "head",
    "t5_proj": "head",
}
"""BLIText's names of the layers after BERT → ours."""

_STAGE_ONLY = ("text_proj.", "temp")
"""Tensors in BLIText's P-Former that only its contrastive loss uses."""


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename BLIText's tensors (`Pformer.…`) to those of `PromptFormer`.

    The frozen language model, which its files also contain, and the contrastive loss's parameters
    are dropped.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = name.removeprefix("Pformer.")
        if own == name or own.startswith(_STAGE_ONLY) or own.endswith("position_ids"):
            continue
        layer, _, kind = own.rpartition(".")
        renamed[f"{_HEADS[layer]}.{kind}" if layer in _HEADS else f"bert.{own}"] = tensor
    return renamed
