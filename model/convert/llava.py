"""Wiring of transformers' LLaVA and Video-LLaVA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig

from model.compose.backbones import lora_targets
from model.convert import component_specs
from model.convert.wiring import Component, Wiring, folder_of, require
from model.presets.blocks import llava_lora
from model.presets.llava import llava_1_5_7b
from model.spec import ClipVision, InputBranchSpec, SpecError, System
from model.spec.hf_backbones import HfCausal

PROJECTOR = "inputs.image.projector.layers."
ENCODER = "inputs.image.encoder.tower."


def wire_llava(config: PretrainedConfig, components: Path) -> Wiring:
    """Return LLaVA-1.5's preset with a configuration's sizes.

    Raises:
        SpecError: the configuration has a setting that our components do not support.
    """
    system = _system(config, components)
    return Wiring(
        system=system,
        components={
            "encoder": Component(prefix=ENCODER, config=config.vision_config),
            "backbone": Component(prefix="backbone.", config=config.text_config),
        },
        names=(*tower_names("vision_tower", ENCODER), *NAMES),
    )


def wire_video_llava(config: PretrainedConfig, components: Path) -> Wiring:
    """Return Video-LLaVA: LLaVA with a second tower for videos, which keeps its class token."""
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
        components={
            "encoder": Component(prefix=ENCODER, config=config.vision_config),
            "video_encoder": Component(prefix=theirs, config=config.vision_config),
            "backbone": Component(prefix="backbone.", config=config.text_config),
        },
        names=(*tower_names("image_tower", ENCODER), *tower_names("video_tower", theirs), *NAMES),
    )


def _system(config: PretrainedConfig, components: Path) -> System:
    """Return the part that both systems share: one input branch for pictures."""
    require(config, projector_hidden_act="gelu", multimodal_projector_bias=True)
    if not isinstance(config.vision_feature_layer, int):
        raise SpecError(
            f"config.vision_feature_layer: {config.vision_feature_layer}, must be one layer"
        )
    preset = llava_1_5_7b()
    branch, backbone = preset.model.inputs[0], preset.model.backbone
    assert isinstance(branch.encoder, ClipVision)
    tower = component_specs.clip_vision(
        config.vision_config, branch.encoder, folder_of(components, "encoder")
    )
    tower = replace(
        tower,
        feature_layer=config.vision_feature_layer,
        keep_cls=config.vision_feature_select_strategy == "full",
    )
    language = component_specs.backbone(
        config.text_config, backbone.template, folder_of(components, "backbone")
    )
    model = replace(preset.model, inputs=(replace(branch, encoder=tower),), backbone=language)
    sft = preset.stage("sft")
    if isinstance(language, HfCausal):
        sft = replace(sft, peft=replace(llava_lora(), targets=lora_targets(language)))
    return replace(preset, model=model, sft=sft)


NAMES = (
    # As published, and as saved by current transformers.
    ("multi_modal_projector.linear_1.", f"{PROJECTOR}0."),
    ("multi_modal_projector.linear_2.", f"{PROJECTOR}2."),
    ("language_model.", "backbone."),
    ("model.multi_modal_projector.linear_1.", f"{PROJECTOR}0."),
    ("model.multi_modal_projector.linear_2.", f"{PROJECTOR}2."),
    ("model.language_model.", "backbone.model."),
    ("lm_head.", "backbone.lm_head."),
)


def tower_names(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the prefixes of a CLIP tower in all versions of transformers."""
    return (
        (f"{theirs}.vision_model.", ours),
        (f"model.{theirs}.vision_model.", ours),
        (f"{theirs}.", ours),
        (f"model.{theirs}.", ours),
    )
