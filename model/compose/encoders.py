"""The spec of a published encoder, from its folder or its name on the hub."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from model.compose.hf_encoders import audio_from, vision_from
from model.compose.processors import image_processor
from model.encoders.hf_tower import own_config
from model.spec import ClipVision, SpecError
from model.spec.image_processor import center_crop
from model.spec.input_branches import Encoder, Modality
from model.weights import load_transformers

CLIP = "clip_vision_model"
"""The class that has a spec of its own, of the last layer but one, as in LLaVA."""


def encoder_from(source: str, modality: Modality) -> Encoder:
    """Return the spec of the encoder in a folder or repository.

    Args:
        source: a hub name or a folder.
        modality: of the media that it should encode.

    Raises:
        SpecError: there is no such encoder, or it does not encode such media.
    """
    if modality == "audio":
        return audio_from(source)
    if modality not in ("image", "video"):
        raise SpecError(f"{source}: transformers has no encoder of {modality}")
    config = own_config(load_transformers(AutoConfig, source))
    return _clip(source, config) if config.model_type == CLIP else vision_from(source)


def _clip(source: str, config: PretrainedConfig) -> ClipVision:
    return ClipVision(
        weights=source,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        # CLIP's own where the folder has none.
        processor=image_processor(source) or center_crop(config.image_size),
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        norm_eps=config.layer_norm_eps,
    )
