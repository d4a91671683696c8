"""LLaVA and Video-LLaVA as transformers has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig

from model.convert import parts
from model.convert.wiring import Part, Wiring, folder_of, want
from model.presets.llava import llava_1_5_7b
from model.spec import ClipVision, InputBranchSpec, SpecError, System

PROJECTOR = "inputs.image.projector.layers."
ENCODER = "inputs.image.encoder.tower."


def wire_llava(config: PretrainedConfig, components: Path) -> Wiring:
    """Return LLaVA-1.5's preset with a configuration's sizes.

    Raises:
        SpecError: the configuration says something that our parts cannot do.
    """
    system = _system(config, components)
    return Wiring(
        system=system,
        parts={
            "encoder": Part(prefix=ENCODER, config=config.vision_config),
            "backbone": Part(prefix="backbone.", config=config.text_config),
        },
        names=(*_tower("vision_tower", ENCODER), *_NAMES),
    )


def wire_video_llava(config: PretrainedConfig, components: Path) -> Wiring:
    """Return Video-LLaVA: LLaVA with a second tower, whose class tokens are kept, for videos."""
    system = _system(config, components)
    images = system.model.inputs[0]
    assert isinstance(images.encoder, ClipVision)
    tower = replace(images.encoder, weights=folder_of(components, "video_encoder"), keep_cls=True)
    videos = InputBranchSpec(
        modality="video",
        encoder=tower,
        projector=images.projector,
        projector_of="image",
        frames=config.video_seq_length // tower.tokens,
    )
    theirs = "inputs.video.encoder.tower."
    return Wiring(
        system=replace(system, model=replace(system.model, inputs=(images, videos))),
        parts={
            "encoder": Part(prefix=ENCODER, config=config.vision_config),
            "video_encoder": Part(prefix=theirs, config=config.vision_config),
            "backbone": Part(prefix="backbone.", config=config.text_config),
        },
        names=(*_tower("image_tower", ENCODER), *_tower("video_tower", theirs), *_NAMES),
    )


def _system(config: PretrainedConfig, components: Path) -> System:
    """Return one picture slot, as both systems have it."""
    want(config, projector_hidden_act="gelu", multimodal_projector_bias=True)
    if not isinstance(config.vision_feature_layer, int):
        raise SpecError(f"config.vision_feature_layer: {config.vision_feature_layer}, want one")
    preset = llava_1_5_7b()
    slot, backbone = preset.model.inputs[0], preset.model.backbone
    assert isinstance(slot.encoder, ClipVision)
    tower = parts.clip_vision(config.vision_config, slot.encoder, folder_of(components, "encoder"))
    tower = replace(
        tower,
        feature_layer=config.vision_feature_layer,
        keep_cls=config.vision_feature_select_strategy == "full",
    )
    language = parts.backbone(
        config.text_config, backbone.template, folder_of(components, "backbone")
    )
    model = replace(preset.model, inputs=(replace(slot, encoder=tower),), backbone=language)
    return replace(preset, model=model)


_NAMES = (
    # As published, and as saved with transformers' own module names.
    ("multi_modal_projector.linear_1.", f"{PROJECTOR}0."),
    ("multi_modal_projector.linear_2.", f"{PROJECTOR}2."),
    ("language_model.", "backbone."),
    ("model.multi_modal_projector.linear_1.", f"{PROJECTOR}0."),
    ("model.multi_modal_projector.linear_2.", f"{PROJECTOR}2."),
    ("model.language_model.", "backbone.model."),
    ("lm_head.", "backbone.lm_head."),
)


def _tower(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the names of a CLIP tower in three generations of transformers."""
    return (
        (f"{theirs}.vision_model.", ours),
        (f"model.{theirs}.vision_model.", ours),
        (f"{theirs}.", ours),
        (f"model.{theirs}.", ours),
    )
