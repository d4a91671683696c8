"""Wiring of transformers' BLIP-2 and InstructBLIP, for pictures and for videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig

from model.convert import component_specs
from model.convert.wiring import Component, Wiring, folder_of
from model.encoders.eva_clip import eva_config
from model.presets.blip import (
    blip_2,
    blip_2_flan_t5_xxl,
    instructblip,
    instructblip_flan_t5_xl,
)
from model.spec import InputBranchSpec, System
from model.spec.image import EvaClip
from model.spec.qformer import QFormer

ENCODER = "inputs.image.encoder.tower."
PROJECTOR = "inputs.image.projector."
TEXT_TOKENIZER = "text"
"""Folder of the tokenizer of an instruction-aware Q-Former."""


def wire_blip_2(config: PretrainedConfig, components: Path) -> Wiring:
    """Return BLIP-2's preset with a configuration's sizes.

    Raises:
        SpecError: the configuration has a setting that our components do not support.
    """
    return _wire(config, components, blip_2_flan_t5_xxl() if _is_t5(config) else blip_2())


def wire_instructblip(config: PretrainedConfig, components: Path) -> Wiring:
    """Return InstructBLIP's preset, which also accepts videos, with a configuration's sizes.

    Raises:
        SpecError: the configuration has a setting that our components do not support.
    """
    preset = instructblip_flan_t5_xl() if _is_t5(config) else instructblip()
    return _wire(config, components, preset)


def _is_t5(config: PretrainedConfig) -> bool:
    model_type: str = config.text_config.model_type
    return model_type == "t5"


def _wire(config: PretrainedConfig, components: Path, preset: System) -> Wiring:
    branches = tuple(_input_branch(config, components, branch) for branch in preset.model.inputs)
    template = preset.model.backbone.template
    backbone = component_specs.backbone(
        config.text_config, template, folder_of(components, "backbone")
    )
    encoder = branches[0].encoder
    assert isinstance(encoder, EvaClip)
    return Wiring(
        system=replace(preset, model=replace(preset.model, inputs=branches, backbone=backbone)),
        components={
            "encoder": Component(prefix=ENCODER, config=eva_config(encoder)),
            "backbone": Component(prefix="backbone.", config=config.text_config),
        },
        names=NAMES,
    )


def _input_branch(
    config: PretrainedConfig, components: Path, branch: InputBranchSpec
) -> InputBranchSpec:
    """Return a preset's input branch with a configuration's sizes."""
    assert isinstance(branch.encoder, EvaClip)
    assert isinstance(branch.projector, QFormer)
    encoder = component_specs.eva_clip(
        config.vision_config, branch.encoder, folder_of(components, "encoder")
    )
    like = replace(branch.projector, tokenizer=folder_of(components, TEXT_TOKENIZER))
    projector = component_specs.qformer(
        config.qformer_config,
        like if branch.projector.reads_text else branch.projector,
        queries=config.num_query_tokens,
    )
    return replace(branch, encoder=encoder, projector=projector)


_TEXT_EMBEDDINGS = f"{PROJECTOR}qformer.words."
NAMES = (
    ("vision_model.", ENCODER),
    ("query_tokens", f"{PROJECTOR}qformer.queries.tokens"),
    ("qformer.embeddings.word_embeddings.", f"{_TEXT_EMBEDDINGS}word_embeddings."),
    ("qformer.embeddings.position_embeddings.", f"{_TEXT_EMBEDDINGS}position_embeddings."),
    # The queries' norm, which InstructBLIP keeps with the embeddings.
    ("qformer.embeddings.layernorm.", f"{PROJECTOR}qformer.bert.layernorm."),
    ("qformer.", f"{PROJECTOR}qformer.bert."),
    ("language_projection.", f"{PROJECTOR}head."),
    ("language_model.", "backbone."),
)
