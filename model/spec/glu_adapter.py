"""Spec of CogVLM's projector: a gated MLP, with learned boundary tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import ProjectorShape


@dataclass(frozen=True, kw_only=True)
class GluAdapter:
    """CogVLM's MLP adapter (Wang et al. 2023, §2.1: two layers of SwiGLU) and its boundary tokens.

    Args:
        mlp_width: of the gate; in CogVLM the language model's.
    """

    kind: Literal["glu_adapter"] = "glu_adapter"
    mlp_width: int = 11008

    reads_text: ClassVar[bool] = False

    def tokens(self, shape: ProjectorShape) -> int:
        """Tokens per medium that the backbone receives: each segment's between begin and end."""
        return shape.segments * (shape.tokens + 2)

    def tiny(self) -> GluAdapter:
        """Return the same projector with small sizes."""
        return replace(self, mlp_width=64)
