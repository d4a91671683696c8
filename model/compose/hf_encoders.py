"""Specs of encoders that transformers knows, from their folder or their name on the hub.

The encoder is built without memory for its weights, and called once: its output says how many
tokens there are and how wide they are, whatever the class.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from model.compose.processors import read_processor, required_image_processor
from model.encoders import hf_audio, hf_vision
from model.encoders.hf_tower import BACKBONE_STAGES, own_config, tower_class
from model.spec import SpecError
from model.spec.hf_encoders import AST, SIZES, WHISPER_LIKE, HfAudio, HfVision, Select
from model.spec.image_processor import ImageProcessor
from model.weights import load_transformers

_NOT_OF_THE_MODEL = BACKBONE_STAGES | {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "transformers_version",
}
SECONDS = 10.0
"""Duration of sounds for encoders that hear any."""
_MAX_PREFIX = 64
"""Most class and register tokens; more than that are patches of another kind."""


def vision_from(
    source: str, *, feature_layer: int | None = None, select: Select = "patches"
) -> HfVision:
    """Return the spec of the vision encoder in a folder or repository.

    Args:
        source: a hub name or a folder, of the encoder or of a model with an image and a text tower.
        feature_layer: see `HfVision`.
        select: see `HfVision`.

    Raises:
        SpecError: there is no such encoder or image processor, or it cannot serve; says why.
    """
    config = own_config(load_transformers(AutoConfig, source))
    _check_input(source, config, "pixel_values", "pictures")
    processor = required_image_processor(source)
    spec = HfVision(
        weights=source,
        config=fields_of(config),
        processor=processor,
        width=0,
        grid=_grid(config, processor) or (1, 1),
        feature_layer=feature_layer,
        select="all",
    )
    try:
        features = _probe(source, hf_vision, spec)
    except SpecError:
        # Where the class does not interpolate its position embeddings, `hf_vision.build` does.
        height, width = processor.size
        side = height if height == width else [height, width]
        if spec.config.get("image_size", side) == side:
            raise
        spec = replace(spec, config=spec.config | {"image_size": side})
        features = _probe(source, hf_vision, spec)
    grid, prefix = _layout(source, config, processor, features.shape[1])
    return replace(spec, width=features.shape[2], grid=grid, prefix=prefix, select=select)


def audio_from(source: str, *, seconds: float | None = None, clips: int = 1) -> HfAudio:
    """Return the spec of the encoder of sound in a folder or repository.

    Args:
        source: a hub name or a folder.
        seconds: of a clip; None for those of the checkpoint, or 10 where it hears any number.
        clips: see `HfAudio`.

    Raises:
        SpecError: there is no such encoder or feature extractor, or it cannot serve; says why.
    """
    config = load_transformers(AutoConfig, source)
    extractor = read_processor(source, "feature_extractor")
    if extractor is None or "feature_extractor_type" not in extractor:
        raise SpecError(
            f"{source}: has no preprocessor_config.json with a feature_extractor_type, which says "
            "how sounds become the encoder's input"
        )
    spec = HfAudio(
        weights=source,
        config=fields_of(config),
        extractor=extractor,
        seconds=seconds or _seconds(config),
        clips=clips,
    )
    features = _probe(source, hf_audio, spec)
    if features.shape[1:] != (spec.tokens, spec.width):
        raise SpecError(
            f"{source}: {config.model_type!r} returns {tuple(features.shape[1:])} for "
            f"{spec.seconds} seconds, expected {(spec.tokens, spec.width)}"
        )
    return spec


def fields_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that say something about the model, and all sizes."""
    known, different = config.to_dict(), config.to_diff_dict()
    names = [name for name in known if name in different or name in SIZES]
    fields = {name: known[name] for name in names if name not in _NOT_OF_THE_MODEL}
    return {"model_type": config.model_type} | fields


def _check_input(source: str, config: PretrainedConfig, name: str, what: str) -> None:
    """Raise SpecError unless an encoder's main input has that name."""
    if tower_class(config).main_input_name != name:
        raise SpecError(f"{source}: {config.model_type!r} is not an encoder of {what}")


def _probe(source: str, file: Any, spec: HfVision | HfAudio) -> Tensor:  # noqa: ANN401 -- a module
    """Return the features of one input, without values."""
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = file.build(spec, weights="random", dtype=torch.float32)
            features: Tensor = encoder(torch.zeros(1, *spec.shape))
    except SpecError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"{source}: {spec.model_type!r} cannot encode {spec.media[0]}s of shape {spec.shape} "
            f"({reason})"
        ) from error
    if features.ndim != 3:
        raise SpecError(f"{source}: {spec.model_type!r} returns features of {features.ndim} axes")
    return features


def _grid(config: PretrainedConfig, processor: ImageProcessor) -> tuple[int, int] | None:
    """Return rows and columns of patches of the configuration's size."""
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        return None
    height, width = processor.size
    return height // patch, width // patch


def _layout(
    source: str, config: PretrainedConfig, processor: ImageProcessor, tokens: int
) -> tuple[tuple[int, int], int]:
    """Return the grid of an encoder's tokens, and how many others precede it.

    Classes that merge patches, or have none, return a square.
    """
    grid = _grid(config, processor)
    if grid is not None and 0 <= tokens - grid[0] * grid[1] <= _MAX_PREFIX:
        return grid, tokens - grid[0] * grid[1]
    height, width = processor.size
    for prefix in range(min(tokens, _MAX_PREFIX)):
        side = math.isqrt(tokens - prefix)
        if side**2 == tokens - prefix and height == width and height % side == 0:
            return (side, side), prefix
    raise SpecError(
        f"{source}: {config.model_type!r} returns {tokens} tokens for {height} x {width} pixels, "
        "which form no grid"
    )


def _seconds(config: PretrainedConfig) -> float:
    """Return how long the sounds are that a checkpoint hears."""
    if config.model_type in WHISPER_LIKE:
        return float(config.max_source_positions * 2 / 100)
    return config.max_length / 100 if config.model_type == AST else SECONDS
