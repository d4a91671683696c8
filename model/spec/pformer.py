"""Specs of the P-Former, which predicts soft prompts for a language model from sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.spec.base import TINY_VOCABULARY

TINY_TEXT = 64
"""Length of a text at `--scale tiny`, where each byte is a token."""


@dataclass(frozen=True, kw_only=True)
class PFormer:
    """A sentence's `[CLS]` to as many soft prompts as a medium has tokens (DLP, Jian et al. 2023).

    It is used in training only: from a caption it predicts target tokens for the projector. Number
    and width of the prompts follow from the input branch and the backbone.

    Args:
        weights: file of a published P-Former (`FOLDER/FILE` or `OWNER/NAME:FILE`), or empty for a
            new one.
        width, mlp_width, layers, heads, vocabulary, max_positions: BERT-base's.
        tokenizer: a hub name or a folder; empty for bytes.
        max_text: in tokens; longer sentences are truncated.
        dropout: in training, as in BERT.
    """

    kind: Literal["pformer"] = "pformer"
    weights: str = ""
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    vocabulary: int = 30_522
    max_positions: int = 512
    tokenizer: str = "google-bert/bert-base-uncased"
    max_text: int = 32
    dropout: float = 0.1

    def tiny(self) -> PFormer:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            vocabulary=TINY_VOCABULARY,
            max_text=TINY_TEXT,
        )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frozen P-Former whose prompts are targets of the projected tokens (Jian et al. 2023, §3.2).

    Args:
        pformer: predicts the prompts from the caption.
        weight: of the mean squared distance among the stage's losses.
    """

    pformer: PFormer
    weight: float

    def tiny(self) -> Reference:
        """Return the same with small sizes."""
        return replace(self, pformer=self.pformer.tiny())
