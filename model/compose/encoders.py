"""The spec of a published encoder, from its folder or its name on the hub."""

from __future__ import annotations

from transformers import AutoConfig, ImageProcessingMixin, PretrainedConfig

from model.spec import ClipVision, SpecError
from model.spec.audio import Whisper
from model.spec.image_processor import ImageProcessor, center_crop
from model.spec.input_branches import Encoder, Modality
from model.weights import load_transformers


def encoder_from(source: str, modality: Modality) -> Encoder:
    """Return the spec of the encoder in a folder or repository.

    Args:
        source: a hub name or a folder.
        modality: of the media that it should encode.

    Raises:
        SpecError: there is no such encoder, or it does not encode such media.
    """
    config = load_transformers(AutoConfig, source)
    encoder = _of_a_spec(source, config)
    if encoder is None or modality not in encoder.media:
        what = "no encoder known here" if encoder is None else f"an encoder of {encoder.media[0]}"
        raise SpecError(f"{source}: {config.model_type!r} is {what}; want one of {modality}")
    return encoder


def _of_a_spec(source: str, config: PretrainedConfig) -> Encoder | None:
    """Return an encoder for which there is a spec of its own; None for all others."""
    if config.model_type == "whisper":
        return Whisper(
            weights=source,
            width=config.d_model,
            mlp_width=config.encoder_ffn_dim,
            layers=config.encoder_layers,
            heads=config.encoder_attention_heads,
            mel_bins=config.num_mel_bins,
            seconds=config.max_source_positions // 50,  # a token per 20 ms
        )
    if config.model_type in ("clip", "clip_vision_model"):
        vision = getattr(config, "vision_config", config)
        return ClipVision(
            weights=source,
            width=vision.hidden_size,
            mlp_width=vision.intermediate_size,
            layers=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            processor=_processor(source, vision.image_size),
            patch_size=vision.patch_size,
            hidden_act=vision.hidden_act,
            norm_eps=vision.layer_norm_eps,
        )
    return None


def _processor(source: str, side: int) -> ImageProcessor:
    """Return the image processor of a folder or repository; CLIP's own where it has none."""
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return center_crop(side)
    return ImageProcessor.from_config(fields)
