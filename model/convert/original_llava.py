"""Wiring of LLaVA in its authors' own format (haotian-liu/LLaVA, `LlavaLlamaForCausalLM`).

It is a LLaMA checkpoint with the projector's tensors among its own, and the name of a CLIP whose
weights are elsewhere, or among them, too, where the tower was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from model.compose.encoders import encoder_from
from model.convert import component_specs
from model.convert.llava import ENCODER, PROJECTOR
from model.convert.wiring import Component, Wiring, folder_of
from model.encoders.clip import clip_config
from model.presets.llava import llava, llava_1_5_7b
from model.spec import ClipVision, Mlp, SpecError
from model.spec.image_processor import pad_to_square

ARCHITECTURES = ("LlavaLlamaForCausalLM", "LlavaLlamaModel")
_TOWER = "model.vision_tower.vision_tower."
_OURS = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version"}


def wire_original_llava(
    fields: Mapping[str, Any], components: Path, *, tower: str | None, has_tower: bool
) -> Wiring:
    """Return LLaVA's preset with the sizes of an original configuration.

    Args:
        fields: of its `config.json`.
        components: the folder of the frozen components.
        tower: folder or hub name of the CLIP; None for the one that the configuration names.
        has_tower: whether the checkpoint holds the tower's weights.

    Raises:
        SpecError: the CLIP cannot be found, or the configuration has a setting that our components
            do not support.
    """
    config = LlamaConfig(**{name: each for name, each in fields.items() if name not in _OURS})
    depth = _depth(str(fields.get("mm_projector_type", "linear")))
    preset = llava() if depth == 1 else llava_1_5_7b()
    backbone = component_specs.backbone(
        config, preset.model.backbone.template, folder_of(components, "backbone")
    )
    encoder = _encoder(fields, tower or str(fields["mm_vision_tower"]))
    parts = {"backbone": Component(prefix="backbone.", config=config)}
    if has_tower:
        encoder = replace(encoder, weights=folder_of(components, "encoder"))
        parts["encoder"] = Component(prefix=ENCODER, config=clip_config(encoder))
    branch = replace(preset.model.inputs[0], encoder=encoder, projector=Mlp(depth=depth))
    model = replace(preset.model, inputs=(branch,), backbone=backbone)
    return Wiring(
        system=replace(preset, model=model),
        components=parts,
        names=(
            (f"{_TOWER}vision_model.", ENCODER),
            (_TOWER, ENCODER),
            ("model.mm_projector.", PROJECTOR if depth > 1 else f"{PROJECTOR}0."),
            ("model.", "backbone.model."),
            ("lm_head.", "backbone.lm_head."),
        ),
        elsewhere=() if has_tower else (ENCODER,),
    )


def has_tower(names: Mapping[str, object]) -> bool:
    """Whether a checkpoint holds the weights of its CLIP."""
    return any(name.startswith(_TOWER) for name in names)


def _depth(kind: str) -> int:
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind != "linear" and found is None:
        raise SpecError(f"config.mm_projector_type: {kind!r}, must be 'linear' or 'mlpNx_gelu'")
    return int(found[1]) if found else 1


def _encoder(fields: Mapping[str, Any], tower: str) -> ClipVision:
    """Return the CLIP, with LLaVA's rules for pictures and for the layer of the features."""
    if fields.get("mm_use_im_start_end"):
        raise SpecError("config.mm_use_im_start_end: True, must be False")
    if fields.get("mm_patch_merge_type", "flat") != "flat":
        merge = fields["mm_patch_merge_type"]
        raise SpecError(f"config.mm_patch_merge_type: {merge!r}, must be 'flat'")
    encoder = encoder_from(tower, "image")
    if not isinstance(encoder, ClipVision):
        raise SpecError(f"config.mm_vision_tower: {tower!r} is {encoder.kind!r}, must be a CLIP")
    shape = fields.get("image_aspect_ratio", "square")
    if shape not in ("square", "pad", None):
        raise SpecError(f"config.image_aspect_ratio: {shape!r}, must be 'square' or 'pad'")
    processor = encoder.processor
    if shape == "pad":
        processor = pad_to_square(encoder.image_size, mean=processor.mean, std=processor.std)
    return replace(
        encoder,
        processor=processor,
        feature_layer=int(fields.get("mm_vision_select_layer", -2)),
        keep_cls=fields.get("mm_vision_select_feature", "patch") == "cls_patch",
    )
