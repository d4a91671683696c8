"""A model's slots: which parts take media in, and how they are wired.

A parent never repeats a child's field: widths of projectors and token counts are derived.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from model.spec.audio import Beats, CFormer, Hubert, Whisper
from model.spec.backbones import Backbone
from model.spec.base import ProjectorShape, SpecError, choose
from model.spec.fusion import Fusion, GatedCrossAttention, Splice
from model.spec.glu_adapter import GluAdapter
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.image import ClipVision, Eva2Clip, EvaClip
from model.spec.imagebind import ImageBind
from model.spec.nfnet import NfNet
from model.spec.output_branches import OutputBranchSpec
from model.spec.points import PointBert
from model.spec.projectors import (
    Abstractor,
    Join,
    Ldp,
    Mlp,
    PerceiverResampler,
    QwenResampler,
)
from model.spec.qformer import QFormer, VideoQFormer
from model.spec.video import TemporalClip, UniformerEva
from model.spec.vit import Vit, Vit22B

Modality = Literal["image", "video", "audio", "points", "depth", "thermal", "imu"]
Encoder = (
    ClipVision
    | EvaClip
    | Eva2Clip
    | Vit
    | Vit22B
    | NfNet
    | Monkey
    | DocPedia
    | UniformerEva
    | TemporalClip
    | Whisper
    | Hubert
    | Beats
    | CFormer
    | PointBert
    | ImageBind
)
Projector = (
    Mlp
    | Join
    | Ldp
    | PerceiverResampler
    | QwenResampler
    | Abstractor
    | GluAdapter
    | QFormer
    | VideoQFormer
)


@dataclass(frozen=True, kw_only=True)
class InputBranchSpec:
    """One modality's way in: encoder, then input projector.

    Args:
        modality: what comes in here.
        encoder, projector: the two parts.
        frames: of a video, sampled uniformly; 1 for everything else.
        pool: what happens to the features of a medium's parts (frames of a video, clips of an
            audio) before the projector: `none`; `mean` over the parts; or `spatial_temporal`, the
            mean of each part and the mean of each patch over the parts, laid end to end
            (Video-ChatGPT, Maaz et al. 2023, §3.1).
        encoder_of, projector_of: the modality whose encoder or projector serves here, too: one
            module, not two alike. The specs must then be the same.
        before, after: texts around the medium's tokens, e.g. `<Img>` and `</Img>`.
    """

    modality: Modality = "image"
    encoder: Encoder
    projector: Projector
    frames: int = 1
    pool: Literal["none", "mean", "spatial_temporal"] = "none"
    encoder_of: Modality | None = None
    projector_of: Modality | None = None
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        """Raise SpecError where the parts cannot go together."""
        where = f"slot {self.modality!r}"
        if self.modality not in self.encoder.media:
            raise SpecError(
                f"{where}: the encoder {self.encoder.kind!r} reads "
                f"{', '.join(self.encoder.media)}, not {self.modality}"
            )
        if self.frames < 1:
            raise SpecError(f"{where}: frames {self.frames}, want 1 or more")
        if self.modality != "video" and self.frames > 1:
            raise SpecError(f"{where}: frames are for video")
        if self.parts == 1 and self.pool != "none":
            raise SpecError(f"{where}: pool wants a medium of several parts")
        if isinstance(self.encoder, UniformerEva) and self.pool != "none":
            raise SpecError(
                f"{where}: {self.encoder.kind!r} hands its frames on as one, nothing to pool"
            )

    @property
    def parts(self) -> int:
        """Parts that the encoder sees of one medium."""
        return self.frames * self.encoder.parts

    @property
    def features(self) -> tuple[int, int, int]:
        """Parts, tokens of a part and width of what the encoder makes of one medium."""
        if isinstance(self.encoder, UniformerEva):  # its own token belongs to no part
            return 1, self.parts * self.encoder.tokens + 1, self.encoder.width
        return self.parts, self.encoder.tokens, self.encoder.width

    @property
    def ends(self) -> tuple[int, int]:
        """Parts and tokens of a part that the projector sees of one medium, after pooling."""
        if self.pool == "mean":
            return 1, self.encoder.tokens
        if self.pool == "spatial_temporal":
            return 1, self.parts + self.encoder.tokens
        parts, tokens, _ = self.features
        return parts, tokens

    def projector_shape(self, width_out: int) -> ProjectorShape:
        """Return what this slot's projector joins in front of a backbone of that width."""
        parts, tokens = self.ends
        return ProjectorShape(
            parts=parts, tokens=tokens, width_in=self.encoder.width, width_out=width_out
        )

    @property
    def tokens(self) -> int:
        """Tokens of one medium as the projector leaves them."""
        return self.projector.tokens(self.projector_shape(0))

    def tiny(self) -> InputBranchSpec:
        """Return the same wiring with small parts."""
        return replace(
            self,
            encoder=self.encoder.tiny(),
            projector=self.projector.tiny(),
            frames=min(self.frames, 3),
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The slots of one model: ways in, the backbone, and ways out."""

    inputs: tuple[InputBranchSpec, ...]
    backbone: Backbone
    fusion: Fusion = field(default_factory=Splice)
    outputs: tuple[OutputBranchSpec, ...] = ()

    def __post_init__(self) -> None:
        """Raise SpecError where slots contradict each other."""
        names = [slot.modality for slot in self.inputs]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(f"inputs: {name!r} stands in {names.count(name)} slots, want one")
        self._check_outputs()
        for slot in self.inputs:
            self._check_shared(slot, "encoder", slot.encoder_of)
            self._check_shared(slot, "projector", slot.projector_of)
            slot.projector.tokens(slot.projector_shape(self.projected_width))
        self.fusion.check(self.backbone)
        if not self.fusion.splices and len({slot.tokens for slot in self.inputs}) > 1:
            raise SpecError(f"fusion: {self.fusion.kind!r} wants equally many tokens of all media")

    def _check_outputs(self) -> None:
        names = [slot.modality for slot in self.outputs]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(f"outputs: {name!r} stands in {names.count(name)} slots, want one")
        if not names:
            return
        if self.backbone.seq2seq or self.backbone.prefix_lm:
            raise SpecError(f"outputs: the backbone {self.backbone.kind!r} says no signals")
        if not isinstance(self.fusion, Splice):
            raise SpecError(f"outputs: {self.fusion.kind!r} has no places for signals")

    def _check_shared(self, slot: InputBranchSpec, part: str, owner: str | None) -> None:
        if owner is None:
            return
        choose(owner, self.modalities, f"modality in {part}_of of slot {slot.modality!r}")
        other = self.slot(owner)
        again = other.encoder_of if part == "encoder" else other.projector_of
        if again is not None or other is slot:
            raise SpecError(f"slot {slot.modality!r}: {part}_of {owner!r} has none of its own")
        if getattr(other, part) != getattr(slot, part):
            raise SpecError(
                f"slot {slot.modality!r}: shares the {part} of {owner!r}, but its spec differs"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The media this model takes in, in the order of its slots."""
        return tuple(slot.modality for slot in self.inputs)

    def slot(self, modality: str) -> InputBranchSpec:
        """Return the slot of one modality."""
        choose(modality, self.modalities, "modality")
        return next(slot for slot in self.inputs if slot.modality == modality)

    @property
    def projected_width(self) -> int:
        """Width of the projected tokens: the backbone's, unless its layers take another."""
        if isinstance(self.fusion, GatedCrossAttention):
            return self.fusion.media_width or self.backbone.width
        return self.backbone.width

    @property
    def packs(self) -> bool:
        """Whether several samples may stand in one row of the backbone's input."""
        return self.backbone.packs and isinstance(self.fusion, Splice)

    def places(self, slot: InputBranchSpec) -> int:
        """Return the places that one medium takes in the backbone's context."""
        return slot.tokens if self.fusion.splices else 0

    def tiny(self) -> ModelSpec:
        """Return the same wiring with small parts."""
        return replace(
            self,
            inputs=tuple(slot.tiny() for slot in self.inputs),
            backbone=self.backbone.tiny(),
            fusion=self.fusion.tiny(),
            outputs=tuple(slot.tiny() for slot in self.outputs),
        )
