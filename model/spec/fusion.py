"""How projected media meet the backbone's text (survey §2.3).

A spec says whether media occupy positions of the backbone's context (`splices`), and checks whether
a backbone is supported (`check`, which raises SpecError if not).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.backbones import Backbone
from model.spec.base import SpecError
from model.spec.hf_backbones import HfCausal


@dataclass(frozen=True, kw_only=True)
class Splice:
    """Media tokens replace placeholders in the token sequence (LLaVA, BLIP-2 and most others)."""

    kind: Literal["splice"] = "splice"

    splices: ClassVar[bool] = True

    def check(self, backbone: Backbone) -> None:
        """Do nothing: every backbone is supported."""

    def tiny(self) -> Splice:
        """Return itself: it has no sizes."""
        return self


@dataclass(frozen=True, kw_only=True)
class GatedCrossAttention:
    """New cross-attention layers in a causal backbone, from text to the last medium before it.

    Flamingo's GATED XATTN-DENSE (Alayrac et al. 2022, §2.2 and appendix A.1.2).

    Args:
        every_n_layers: a new layer before every n-th layer of the backbone, from the first one on.
        heads: of the new layers; in Flamingo as many as the backbone has.
        head_width: of one head.
        mlp_factor: width of the feed-forward layers as a multiple of the backbone's.
        media_width: of the media tokens; None for the backbone's width.
        activation: Flamingo's squared ReLU, or OpenFlamingo's GELU.
    """

    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    every_n_layers: int = 4
    heads: int
    head_width: int = 128
    mlp_factor: int = 4
    media_width: int | None = None
    activation: Literal["squared_relu", "gelu"] = "squared_relu"

    splices: ClassVar[bool] = False

    def check(self, backbone: Backbone) -> None:
        """Raise SpecError unless the backbone is causal."""
        if backbone.seq2seq:
            raise SpecError(
                f"fusion: {self.kind!r} requires a causal backbone, {backbone.kind!r} is seq2seq"
            )

    def tiny(self) -> GatedCrossAttention:
        """Return the same layers with small sizes."""
        return replace(
            self,
            every_n_layers=min(self.every_n_layers, 2),
            heads=4,
            head_width=16,
            media_width=None if self.media_width is None else 32,
        )


@dataclass(frozen=True, kw_only=True)
class VisualExpert:
    """Media tokens have weights of their own in every layer of a LLaMA.

    CogVLM (Wang et al. 2023, §2.1).

    Args:
        bias: whether queries, keys and values of media have biases: in CogVLM2, not in CogVLM.
        shared_position: whether a picture's tokens share one position.
    """

    kind: Literal["visual_expert"] = "visual_expert"
    bias: bool = False
    shared_position: bool = True

    splices: ClassVar[bool] = True

    def check(self, backbone: Backbone) -> None:
        """Raise SpecError unless the backbone is a LLaMA."""
        architecture: str = backbone.kind
        if isinstance(backbone, HfCausal):
            architecture = backbone.model_type
        if architecture != "llama":
            raise SpecError(
                f"fusion: {self.kind!r} requires a backbone of kind 'llama', not {architecture!r}"
            )

    def tiny(self) -> VisualExpert:
        """Return itself: all sizes are the backbone's."""
        return self


Fusion = Splice | GatedCrossAttention | VisualExpert
