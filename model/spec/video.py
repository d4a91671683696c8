"""Specs of video encoders whose layers attend across frames (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError
from model.spec.image import ClipVision, EvaClip


@dataclass(frozen=True, kw_only=True)
class UniformerEva:
    """EVA-CLIP with UniFormerV2's global attention in its last layers, as in VideoChat.

    Li et al. 2023, *VideoChat* (arXiv:2305.06355), §3.3.1; Li et al. 2022, *UniFormerV2*
    (arXiv:2211.09552), §3.2, whose local attention VideoChat does not use. An additional token
    attends to all frames, layer by layer (GMHRA). It belongs to no frame, so all tokens are
    returned as one segment: 8 frames of 257 tokens and the additional one are 2,057.

    Args:
        tower: encoder of each frame.
        aggregators: number of layers, counted from the last, that the token attends to.
        dropout: in the token's MLP.
        aggregator_weights: file of a VideoChat checkpoint (`FOLDER/FILE` or `OWNER/NAME:FILE`),
            which also holds the norm after the tower; empty for new weights.
    """

    kind: Literal["uniformer_eva"] = "uniformer_eva"
    tower: EvaClip = field(default_factory=EvaClip)
    aggregators: int = 8
    dropout: float = 0.5
    aggregator_weights: str = ""

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = True

    @property
    def weights(self) -> str:
        """Source of the tower's weights."""
        return self.tower.weights

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one frame."""
        return self.tower.shape

    @property
    def tokens(self) -> int:
        """Tokens per frame, without the additional token of the whole video."""
        return self.tower.tokens

    @property
    def width(self) -> int:
        """Width of the tower."""
        return self.tower.width

    def tiny(self) -> UniformerEva:
        """Return the same encoder with small sizes."""
        return replace(self, tower=self.tower.tiny(), aggregators=1)


@dataclass(frozen=True, kw_only=True)
class TemporalClip:
    """CLIP with a temporal convolution before each layer, as in mPLUG-Owl's video release.

    X-PLUG/mPLUG-Owl, `mplug_owl_video`; the paper (Ye et al. 2023, arXiv:2304.14178) covers
    pictures only. Pictures skip the convolutions. The tower's last norm is applied.

    Args:
        tower: encoder of each frame; must return the last layer with the class token.
        owl_weights: file of an mPLUG-Owl checkpoint (`FOLDER/FILE` or `OWNER/NAME:FILE`), which
            also holds the tower; empty for the tower's own weights and new convolutions.
    """

    kind: Literal["temporal_clip"] = "temporal_clip"
    tower: ClipVision
    owl_weights: str = ""

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError unless the tower returns its last layer with the class token."""
        if self.tower.feature_layer != -1 or not self.tower.keep_cls:
            raise SpecError("encoder 'temporal_clip': tower needs feature_layer -1 and keep_cls")

    @property
    def weights(self) -> str:
        """Source of the weights."""
        return self.owl_weights or self.tower.weights

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one frame."""
        return self.tower.shape

    @property
    def tokens(self) -> int:
        """Tokens per frame that the projector receives."""
        return self.tower.tokens

    @property
    def width(self) -> int:
        """Width of the tower."""
        return self.tower.width

    def tiny(self) -> TemporalClip:
        """Return the same encoder with small sizes."""
        return replace(self, tower=self.tower.tiny())
