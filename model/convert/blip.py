"""BLIP-2 and InstructBLIP, for pictures and for videos, as transformers has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig

from model.convert import parts
from model.convert.wiring import Part, Wiring, folder_of
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
"""Folder of the tokenizer of a Q-Former that reads the instruction."""


def wire_blip_2(config: PretrainedConfig, components: Path) -> Wiring:
    """Return BLIP-2's preset with a configuration's sizes.

    Raises:
        SpecError: the configuration says something that our parts cannot do.
    """
    return _wire(config, components, blip_2_flan_t5_xxl() if _is_t5(config) else blip_2())


def wire_instructblip(config: PretrainedConfig, components: Path) -> Wiring:
    """Return InstructBLIP's preset, which takes videos as well, with a configuration's sizes.

    Raises:
        SpecError: the configuration says something that our parts cannot do.
    """
    preset = instructblip_flan_t5_xl() if _is_t5(config) else instructblip()
    return _wire(config, components, preset)


def _is_t5(config: PretrainedConfig) -> bool:
    model_type: str = config.text_config.model_type
    return model_type == "t5"


def _wire(config: PretrainedConfig, components: Path, preset: System) -> Wiring:
    slots = tuple(_slot(config, components, slot) for slot in preset.model.inputs)
    template = preset.model.backbone.template
    backbone = parts.backbone(config.text_config, template, folder_of(components, "backbone"))
    encoder = slots[0].encoder
    assert isinstance(encoder, EvaClip)
    return Wiring(
        system=replace(preset, model=replace(preset.model, inputs=slots, backbone=backbone)),
        parts={
            "encoder": Part(prefix=ENCODER, config=eva_config(encoder)),
            "backbone": Part(prefix="backbone.", config=config.text_config),
        },
        names=_NAMES,
    )


def _slot(config: PretrainedConfig, components: Path, slot: InputBranchSpec) -> InputBranchSpec:
    """Return a preset's slot with a configuration's sizes; videos share the pictures' parts."""
    assert isinstance(slot.encoder, EvaClip)
    assert isinstance(slot.projector, QFormer)
    encoder = parts.eva_clip(config.vision_config, slot.encoder, folder_of(components, "encoder"))
    like = replace(slot.projector, tokenizer=folder_of(components, TEXT_TOKENIZER))
    projector = parts.qformer(
        config.qformer_config,
        like if slot.projector.reads_text else slot.projector,
        queries=config.num_query_tokens,
    )
    return replace(slot, encoder=encoder, projector=projector)


_WORDS = f"{PROJECTOR}qformer.words."
_NAMES = (
    ("vision_model.", ENCODER),
    ("query_tokens", f"{PROJECTOR}qformer.queries.tokens"),
    ("qformer.embeddings.word_embeddings.", f"{_WORDS}word_embeddings."),
    ("qformer.embeddings.position_embeddings.", f"{_WORDS}position_embeddings."),
    # The norm of the queries, which InstructBLIP has among the embeddings.
    ("qformer.embeddings.layernorm.", f"{PROJECTOR}qformer.bert.layernorm."),
    ("qformer.", f"{PROJECTOR}qformer.bert."),
    ("language_projection.", f"{PROJECTOR}head."),
    ("language_model.", "backbone."),
)
