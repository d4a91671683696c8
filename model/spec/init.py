"""Pre-training objectives of stages before MM-PT: Q-Former and P-Former (survey §2.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.spec.pformer import TINY_TEXT, PFormer


@dataclass(frozen=True, kw_only=True)
class ImageTextInit:
    """BLIP-2's stage 1 for the Q-Former of one branch: ITC, ITM and ITG (Li et al. 2023, §3.2).

    Args:
        modality: of the input branch.
        bert: hub name or folder of the BERT that initialises the Q-Former, except for queries and
            cross-attention; empty for new weights.
        width: of the space in which pictures and texts are compared (ITC).
        temperature: initial value; learned.
        label_smoothing: in ITC and ITG (LAVIS: 0.1).
        max_text: in tokens; longer captions are truncated.
    """

    kind: Literal["qformer"] = "qformer"
    modality: str = "image"
    bert: str = "google-bert/bert-base-uncased"
    width: int = 256
    temperature: float = 0.07
    label_smoothing: float = 0.1
    max_text: int = 32

    def tiny(self) -> ImageTextInit:
        """Return the same with small sizes."""
        return replace(self, bert="", width=16, max_text=TINY_TEXT)


@dataclass(frozen=True, kw_only=True)
class SentenceInit:
    """Training of a P-Former on sentences alone: contrastive, quantisation and language-model loss.

    Jian et al. 2023, §3.1; figures of yiren-jian/BLIText, `pformer_opt.py`.

    Args:
        pformer: the trained P-Former.
        modality: of the input branch whose tokens the prompts replace.
        bert: hub name or folder of the BERT that initialises it; empty for new weights.
        width: of the space in which sentences are compared.
        temperature: initial value; learned.
        label_smoothing: of the contrastive loss.
        mask_ratio: share of the P-Former's input tokens that are masked.
    """

    kind: Literal["pformer"] = "pformer"
    pformer: PFormer
    modality: str = "image"
    bert: str = "google-bert/bert-base-uncased"
    width: int = 256
    temperature: float = 0.07
    label_smoothing: float = 0.1
    mask_ratio: float = 0.25

    @property
    def max_text(self) -> int:
        """Length to which sentences are truncated, in tokens."""
        return self.pformer.max_text

    def tiny(self) -> SentenceInit:
        """Return the same with small sizes."""
        return replace(self, bert="", width=16, pformer=self.pformer.tiny())
