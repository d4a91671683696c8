"""Q-Formers: learned queries that read an encoder's features (survey §2.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.backbones import TINY_VOCABULARY
from model.spec.base import ProjectorShape, SpecError
from model.spec.projectors import check_frames

TINY_QUERIES = 4
"""Queries of a Q-Former at `--scale tiny`."""


@dataclass(frozen=True, kw_only=True)
class QFormer:
    """BERT with learned queries and cross-attention, then a linear head (BLIP-2, Li et al. 2023).

    Args:
        weights: file of a published Q-Former (`FOLDER/FILE` or `OWNER/NAME:FILE`) in LAVIS's or
            transformers' names, or empty for a new one; the head is always new.
        queries: learned tokens, and tokens handed to the backbone.
        extra_queries: more of them, which may train while the published ones stay frozen
            (VideoChat, Li et al. 2023, has 64).
        width, mlp_width, layers, heads: BERT-base's.
        cross_every: cross-attention stands in every so-manieth layer, the first one included.
        vocabulary, max_positions: of the text branch; BERT's 30522 and the token `[DEC]`.
        tokenizer: of the text branch: a hub name or a folder.
        max_text: longer instructions are cut, in tokens.
        dropout: in training, as BERT has it.
        instruction: whether the queries see the instruction through self-attention (InstructBLIP,
            Dai et al. 2023, §2.3).
        text_branch: whether the text half of the weights is kept without being read; stage 1 of
            BLIP-2 needs it. A Q-Former that reads instructions has it anyway.
        joint: whether the queries read all parts of a medium at once instead of each by itself.
        norm_features: whether a layer norm of the features is the Q-Former's own and trains with
            it (X-InstructBLIP, Panagopoulou et al. 2023, has one for each modality).
    """

    kind: Literal["qformer"] = "qformer"
    weights: str = ""
    queries: int = 32
    extra_queries: int = 0
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    cross_every: int = 2
    vocabulary: int = 30_523
    max_positions: int = 512
    tokenizer: str = "google-bert/bert-base-uncased"
    max_text: int = 128
    dropout: float = 0.1
    instruction: bool = False
    text_branch: bool = False
    joint: bool = False
    norm_features: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether the instruction is read."""
        return self.instruction

    @property
    def has_text(self) -> bool:
        """Whether the text half of the weights exists."""
        return self.instruction or self.text_branch

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: the queries, for each part or once."""
        return (self.queries + self.extra_queries) * (1 if self.joint else ends.parts)

    def tiny(self) -> QFormer:
        """Return the same architecture with small sizes."""
        return replace(
            self,
            queries=min(self.queries, TINY_QUERIES),
            extra_queries=min(self.extra_queries, TINY_QUERIES),
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            vocabulary=TINY_VOCABULARY,
        )


@dataclass(frozen=True, kw_only=True)
class VideoQFormer:
    """A Q-Former over the parts of a medium, each with its position (Video-LLaMA).

    Zhang et al. 2023 (arXiv:2306.02858), §2.1: frames go through BLIP-2's frozen Q-Former first,
    segments of sound (`frame=None`) do not. The positions are as wide as what they are added to.

    Args:
        frame: reads each part by itself, or nothing; its own head is left out.
        whole: reads all parts at once; its queries are the tokens handed to the backbone.
        positions: parts that there are position embeddings for.
    """

    kind: Literal["video_qformer"] = "video_qformer"
    frame: QFormer | None = QFormer()
    whole: QFormer = QFormer(layers=2, cross_every=1)
    positions: int = 32

    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError where a part of it would want the instruction."""
        for part in (self.frame, self.whole):
            if part is not None and (part.instruction or part.joint):
                raise SpecError(
                    f"projector {self.kind!r}: its parts cannot have instruction or joint"
                )

    def tokens(self, ends: ProjectorShape) -> int:
        """Tokens handed to the backbone for one medium: the queries, whatever its length.

        Raises:
            SpecError: more parts than positions.
        """
        check_frames(ends.parts, self.positions, self.kind)
        return self.whole.queries + self.whole.extra_queries

    def tiny(self) -> VideoQFormer:
        """Return the same architecture with small sizes."""
        frame = None if self.frame is None else self.frame.tiny()
        return replace(self, frame=frame, whole=self.whole.tiny())
