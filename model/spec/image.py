"""Specs of encoders of pictures and of video frames (survey §2.1).

Encoders of tiled pictures or of DCT coefficients are in `high_resolution.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError
from model.spec.image_processor import ImageProcessor, squash

TINY_PATCH = 8
"""Patch size at `--scale tiny`, in pixels."""


@dataclass(frozen=True, kw_only=True)
class PictureSpec:
    """What the specs of encoders of pictures share; frames of videos are pictures.

    Args:
        processor: how a picture becomes pixels; its size is the encoder's.
    """

    kind: str
    processor: ImageProcessor

    media: ClassVar[tuple[str, ...]] = ("image", "video")
    segments: ClassVar[int] = 1
    encodes_jointly: ClassVar[bool] = False

    @property
    def image_size(self) -> int:
        """Side of a square picture, in pixels; raises SpecError if it is not square."""
        return self.processor.side

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one picture."""
        return (3, *self.processor.size)


@dataclass(frozen=True, kw_only=True)
class ClipVision(PictureSpec):
    """CLIP's vision transformer (Radford et al. 2021); returns the hidden states of one layer.

    Args:
        weights: a hub name or a folder of a transformers checkpoint.
        patch_size: side of a patch, in pixels. Position embeddings of weights for another size
            than the processor's are interpolated (Qwen-VL: 224 to 448).
        feature_layer: index of the hidden state that is returned; -2 is the last but one, as in
            LLaVA.
        keep_cls: whether the class token is returned with the patches.
        attend_cls: whether there is a class token at all; Qwen-VL's ViT-bigG has none.
        hidden_act: `quick_gelu` in OpenAI's models, `gelu` in OpenCLIP's ViT-H and ViT-bigG.
        norm_eps: of the layer norms.
    """

    kind: Literal["clip_vision"] = "clip_vision"
    weights: str
    width: int
    mlp_width: int
    layers: int
    heads: int
    patch_size: int
    feature_layer: int = -2
    keep_cls: bool = False
    attend_cls: bool = True
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raise SpecError where the class token should be returned but does not exist."""
        if self.keep_cls and not self.attend_cls:
            raise SpecError("encoder 'clip_vision': keep_cls requires attend_cls")

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives."""
        return (self.image_size // self.patch_size) ** 2 + self.keep_cls

    def tiny(self) -> ClipVision:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=3,
            heads=2,
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
            feature_layer=max(self.feature_layer, -2),
        )


@dataclass(frozen=True, kw_only=True)
class EvaClip(PictureSpec):
    """EVA-CLIP ViT-g/14 (Fang et al. 2022; Sun et al. 2023) as in BLIP-2 and its successors.

    BLIP-2 (Li et al. 2023, §3) drops the last of 40 layers and adds a layer norm after the 39th; so
    do all systems that adopted its encoder.

    Args:
        weights: a hub name or a folder of a transformers BLIP-2 checkpoint, of which only the
            vision model is loaded.
        patch_size: side of a patch, in pixels. Position embeddings of weights for another size
            than the processor's are interpolated (MiniGPT-v2: 224 to 448).
        keep_cls: whether the class token is returned; MiniGPT-v2 drops it.
        norm_eps: of the layer norms.
    """

    kind: Literal["eva_clip"] = "eva_clip"
    weights: str = "Salesforce/blip2-opt-2.7b"
    width: int = 1408
    mlp_width: int = 6144
    layers: int = 39
    heads: int = 16
    processor: ImageProcessor = squash(224)
    patch_size: int = 14
    keep_cls: bool = True
    norm_eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives."""
        return (self.image_size // self.patch_size) ** 2 + self.keep_cls

    def tiny(self) -> EvaClip:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
        )


@dataclass(frozen=True, kw_only=True)
class Eva2Clip(PictureSpec):
    """EVA-02-CLIP-E/14 (Sun et al. 2023) as in CogVLM (Wang et al. 2023, §2.1).

    CogVLM drops the last of 64 layers, which only the contrastive loss uses, and the norm after it;
    only the patch tokens are returned.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` with timm's names; layers beyond `layers` are
            not loaded.
        patch_size: side of a patch, in pixels. Position embeddings of weights for another size
            than the processor's are interpolated (CogVLM: 224 to 490).
    """

    kind: Literal["eva2_clip"] = "eva2_clip"
    weights: str = "timm/eva02_enormous_patch14_clip_224.laion2b_plus:model.safetensors"
    width: int = 1792
    mlp_width: int = 15360
    layers: int = 63
    heads: int = 16
    processor: ImageProcessor = squash(490)
    patch_size: int = 14

    @property
    def tokens(self) -> int:
        """Tokens per picture that the projector receives."""
        return (self.image_size // self.patch_size) ** 2

    def tiny(self) -> Eva2Clip:
        """Return the same tower with small sizes."""
        return replace(
            self,
            width=32,
            mlp_width=64,
            layers=2,
            heads=2,
            processor=self.processor.at(2 * TINY_PATCH),
            patch_size=TINY_PATCH,
        )
