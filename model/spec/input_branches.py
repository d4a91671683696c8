"""A model's spec: input branches, backbone, fusion and output branches.

No field repeats another: widths of projectors and numbers of tokens are derived.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from model.spec.audio import Beats, CFormer, Hubert, Whisper
from model.spec.backbones import Backbone
from model.spec.base import FieldError, ProjectorShape, SpecError, check_at_least, choose
from model.spec.fusion import Fusion, GatedCrossAttention, Splice
from model.spec.glu_adapter import GluAdapter
from model.spec.hf_encoders import HfAudio, HfVision
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.image import ClipVision, Eva2Clip, EvaClip
from model.spec.imagebind import ImageBind
from model.spec.nfnet import NfNet
from model.spec.output_branches import OutputBranchSpec
from model.spec.points import PointBert
from model.spec.projectors import (
    Abstractor,
    Ldp,
    Mlp,
    PerceiverResampler,
    QwenResampler,
    TokenConcat,
)
from model.spec.qformer import QFormer, VideoQFormer
from model.spec.siglip import Siglip
from model.spec.video import TemporalClip, UniformerEva
from model.spec.vit import Vit, Vit22B

Modality = Literal["image", "video", "audio", "points", "depth", "thermal", "imu"]
Encoder = (
    ClipVision
    | EvaClip
    | Eva2Clip
    | Siglip
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
    | HfVision
    | HfAudio
)
Projector = (
    Mlp
    | TokenConcat
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
    """One modality's input branch: encoder, then input projector.

    Args:
        modality: of the input media.
        encoder, projector: specs of the two components.
        frames: sampled uniformly from a video; 1 for all other media.
        pool: pooling of a medium's segments (frames of a video, clips of a sound) before the
            projector: `none`; `mean` over the segments; or `spatial_temporal`, the mean of each
            segment and the mean of each patch over the segments, concatenated (Video-ChatGPT, Maaz
            et al. 2023, §3.1).
        encoder_of, projector_of: the modality whose encoder or projector this branch shares: one
            module, not a copy. The specs must then be equal.
        before, after: texts around the medium's tokens, e.g. `<Img>` and `</Img>`; `{number}` is
            its number among the media of its kind in the dialogue, counted from 1.
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
        """Raise SpecError where the components do not fit each other."""
        where = f"input branch {self.modality!r}"
        if self.modality not in self.encoder.media:
            raise SpecError(
                f"{where}: the encoder {self.encoder.kind!r} encodes "
                f"{', '.join(self.encoder.media)}, not {self.modality}"
            )
        if self.frames < 1:
            raise SpecError(f"{where}: frames {self.frames}, must be at least 1")
        if self.modality != "video" and self.frames > 1:
            raise SpecError(f"{where}: frames is for videos only")
        if self.segments == 1 and self.pool != "none":
            raise SpecError(f"{where}: pool needs a medium of several segments")
        if isinstance(self.encoder, UniformerEva) and self.pool != "none":
            raise SpecError(
                f"{where}: {self.encoder.kind!r} returns all frames as one segment, nothing to pool"
            )

    @property
    def segments(self) -> int:
        """Segments of one medium that the encoder receives."""
        return self.frames * self.encoder.segments

    @property
    def heard_seconds(self) -> float | None:
        """How much of a sound's beginning the encoder hears; None for all of it."""
        encoder = self.encoder
        if isinstance(encoder, HfAudio):
            return encoder.clips * encoder.seconds
        # ImageBind's clips are spread over the whole sound.
        return encoder.seconds if isinstance(encoder, Whisper | Hubert | Beats | CFormer) else None

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the encoder's features of one medium: segments, tokens per segment, width."""
        if isinstance(self.encoder, UniformerEva):  # its additional token belongs to no frame
            return 1, self.segments * self.encoder.tokens + 1, self.encoder.width
        return self.segments, self.encoder.tokens, self.encoder.width

    @property
    def pooled_shape(self) -> tuple[int, int]:
        """Segments and tokens per segment that the projector receives, after pooling."""
        if self.pool == "mean":
            return 1, self.encoder.tokens
        if self.pool == "spatial_temporal":
            return 1, self.segments + self.encoder.tokens
        segments, tokens, _ = self.feature_shape
        return segments, tokens

    def projector_shape(self, width_out: int) -> ProjectorShape:
        """Return the shape of this branch's projector before a backbone of that width."""
        segments, tokens = self.pooled_shape
        return ProjectorShape(
            segments=segments, tokens=tokens, width_in=self.encoder.width, width_out=width_out
        )

    @property
    def tokens(self) -> int:
        """Tokens of one medium after the projector."""
        return self.projector.tokens(self.projector_shape(0))

    def tiny(self) -> InputBranchSpec:
        """Return the same wiring with small components."""
        return replace(
            self,
            encoder=self.encoder.tiny(),
            projector=self.projector.tiny(),
            frames=min(self.frames, 3),
        )


_SIZES = ("layers", "width", "mlp_width", "heads", "kv_heads", "vocabulary", "max_positions")


def _check_sizes(spec: object, where: str) -> None:
    """Raise SpecError for a size that is not positive."""
    try:
        check_at_least(
            spec, 1, *(name for name in _SIZES if isinstance(getattr(spec, name, None), int))
        )
    except FieldError as error:
        raise SpecError(f"{where}.{error}") from None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: input branches, backbone, fusion of the two, and output branches."""

    inputs: tuple[InputBranchSpec, ...]
    backbone: Backbone
    fusion: Fusion = field(default_factory=Splice)
    outputs: tuple[OutputBranchSpec, ...] = ()

    def __post_init__(self) -> None:
        """Raise SpecError where branches contradict each other or do not fit the backbone."""
        names = [branch.modality for branch in self.inputs]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(
                    f"inputs: {names.count(name)} branches for {name!r}, at most one allowed"
                )
        self._check_outputs()
        _check_sizes(self.backbone, "backbone")
        for branch in self.inputs:
            _check_sizes(branch.encoder, "encoder")
            self._check_shared(branch, "encoder", branch.encoder_of)
            self._check_shared(branch, "projector", branch.projector_of)
            branch.projector.tokens(branch.projector_shape(self.projected_width))
        self.fusion.check(self.backbone)
        if not self.fusion.splices and len({branch.tokens for branch in self.inputs}) > 1:
            raise SpecError(
                f"fusion: {self.fusion.kind!r} needs the same number of tokens for all media"
            )

    def _check_outputs(self) -> None:
        names = [branch.modality for branch in self.outputs]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(
                    f"outputs: {names.count(name)} branches for {name!r}, at most one allowed"
                )
        if not names:
            return
        if self.backbone.seq2seq or self.backbone.prefix_lm:
            raise SpecError(
                f"outputs: the backbone {self.backbone.kind!r} supports no signal tokens"
            )
        if not isinstance(self.fusion, Splice):
            raise SpecError(f"outputs: fusion {self.fusion.kind!r} supports no signal tokens")

    def _check_shared(self, branch: InputBranchSpec, component: str, owner: str | None) -> None:
        if owner is None:
            return
        where = f"input branch {branch.modality!r}"
        choose(owner, self.modalities, f"modality in {component}_of of {where}")
        other = self.input_branch(owner)
        shared = other.encoder_of if component == "encoder" else other.projector_of
        if shared is not None or other is branch:
            raise SpecError(f"{where}: {component}_of {owner!r} has none of its own")
        if getattr(other, component) != getattr(branch, component):
            raise SpecError(f"{where}: shares the {component} of {owner!r}, but its spec differs")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The input modalities, in the order of the branches."""
        return tuple(branch.modality for branch in self.inputs)

    def input_branch(self, modality: str) -> InputBranchSpec:
        """Return the input branch of one modality; raises SpecError if there is none."""
        choose(modality, self.modalities, "modality")
        return next(branch for branch in self.inputs if branch.modality == modality)

    @property
    def projected_width(self) -> int:
        """Width of the projected tokens: the backbone's, unless cross-attention reads another."""
        if isinstance(self.fusion, GatedCrossAttention):
            return self.fusion.media_width or self.backbone.width
        return self.backbone.width

    @property
    def supports_packing(self) -> bool:
        """Whether several samples may be packed into one sequence of the backbone's input."""
        return self.backbone.supports_packing and isinstance(self.fusion, Splice)

    def context_tokens(self, branch: InputBranchSpec) -> int:
        """Return how many tokens of the backbone's context one medium occupies."""
        return branch.tokens if self.fusion.splices else 0

    def tiny(self) -> ModelSpec:
        """Return the same wiring with small components."""
        return replace(
            self,
            inputs=tuple(branch.tiny() for branch in self.inputs),
            backbone=self.backbone.tiny(),
            fusion=self.fusion.tiny(),
            outputs=tuple(branch.tiny() for branch in self.outputs),
        )
