"""Specs of Q-Formers: learned queries with cross-attention to features (survey §2.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import TINY_VOCABULARY, ProjectorShape, SpecError
from model.spec.projectors import check_segments

TINY_QUERIES = 4
"""Queries of a Q-Former at `--scale tiny`."""


@dataclass(frozen=True, kw_only=True)
class QFormer:
    """BERT with learned queries and cross-attention, then a linear head (BLIP-2, Li et al. 2023).

    Args:
        weights: file of a published Q-Former (`FOLDER/FILE` or `OWNER/NAME:FILE`) with LAVIS's or
            transformers' names, or empty for a new one; the head is always new.
        queries: learned queries, and hence output tokens.
        extra_queries: additional queries, which may be trained while the published ones stay frozen
            (VideoChat, Li et al. 2023, has 64).
        width, mlp_width, layers, heads: BERT-base's.
        cross_attention_frequency: every n-th layer has cross-attention, from the first one on.
        vocabulary, max_positions: of the text branch; BERT's 30522 and the token `[DEC]`.
        tokenizer: of the text branch: a hub name or a folder.
        max_text: in tokens; longer instructions are truncated.
        dropout: in training, as in BERT.
        instruction: whether the queries attend to the instruction through self-attention
            (InstructBLIP, Dai et al. 2023, §2.3).
        text_branch: whether the weights of the text branch exist although no instruction is read;
            BLIP-2's stage 1 needs them. With `instruction` they always exist.
        joint: whether the queries attend to all segments of a medium at once, not to each alone.
        norm_features: whether the Q-Former has its own layer norm of the features, which is trained
            with it (X-InstructBLIP, Panagopoulou et al. 2023, has one for each modality).
    """

    kind: Literal["qformer"] = "qformer"
    weights: str = ""
    queries: int = 32
    extra_queries: int = 0
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    cross_attention_frequency: int = 2
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
        """Whether the weights of the text branch exist."""
        return self.instruction or self.text_branch

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: the queries, per segment or once."""
        return (self.queries + self.extra_queries) * (1 if self.joint else shape.segments)

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
    """A Q-Former over the segments of a medium with position embeddings (Video-LLaMA).

    Zhang et al. 2023 (arXiv:2306.02858), §2.1: frames pass BLIP-2's frozen Q-Former first, clips of
    sound (`frame=None`) do not.

    Args:
        frame: Q-Former of each segment, without a head; None for no such Q-Former.
        whole: Q-Former over all segments; its queries are the output tokens.
        max_segments: number of position embeddings.
    """

    kind: Literal["video_qformer"] = "video_qformer"
    frame: QFormer | None = QFormer()
    whole: QFormer = QFormer(layers=2, cross_attention_frequency=1)
    max_segments: int = 32

    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError where one of the two Q-Formers has `instruction` or `joint`."""
        for part in (self.frame, self.whole):
            if part is not None and (part.instruction or part.joint):
                raise SpecError(
                    f"projector {self.kind!r}: frame and whole cannot have instruction or joint"
                )

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: the queries, whatever its length.

        Raises:
            SpecError: more segments than position embeddings.
        """
        check_segments(shape.segments, self.max_segments, self.kind)
        return self.whole.queries + self.whole.extra_queries

    def tiny(self) -> VideoQFormer:
        """Return the same architecture with small sizes."""
        frame = None if self.frame is None else self.frame.tiny()
        return replace(self, frame=frame, whole=self.whole.tiny())
