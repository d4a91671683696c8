"""Encoders of transformers by their configuration alone: which class, how built, how loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model.spec import SpecError
from model.weights import Weights, cast, check_config, load_transformers

Resize = Callable[[Tensor, tuple[int, ...]], Tensor]
"""From a checkpoint's position embeddings to those of another input size, given their shape."""

BACKBONE_STAGES = frozenset({"out_features", "out_indices", "stage_names"})
"""Fields of vision models as backbones of other models; they follow from the number of layers."""
INPUT_SIZES = frozenset({"image_size", "num_patches", "max_source_positions", "max_length"})
"""Fields that say how many position embeddings there are."""


def config_of(fields: Mapping[str, Any]) -> PretrainedConfig:
    """Return transformers' configuration from its fields, `model_type` among them.

    Raises:
        SpecError: an architecture that transformers does not know, or fields that it refuses.
    """
    options = dict(fields)
    kind = options.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise SpecError(f"model_type {kind!r} is not known to this version of transformers")
    try:
        return AutoConfig.for_model(kind, **options)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise SpecError(f"config of model_type {kind!r}: {reason}") from None


def own_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of the image tower of a model with two towers; else the same."""
    tower: PretrainedConfig = getattr(config, "vision_config", config)
    return tower


def tower_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class that AutoModel builds.

    Raises:
        SpecError: there is none.
    """
    try:
        found: Any = MODEL_MAPPING[type(config)]
    except KeyError:
        raise SpecError(
            f"{config.model_type!r} has no encoder in transformers' AutoModel"
        ) from None
    cls: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return cls


def build_tower(
    source: str,
    fields: Mapping[str, Any],
    *,
    weights: Weights,
    dtype: torch.dtype,
    resize: Resize,
) -> PreTrainedModel:
    """Return an encoder with published or random weights; of an encoder-decoder, the encoder.

    Args:
        source: a hub name or a folder.
        fields: of the encoder's configuration.
        weights: `pretrained` loads, `random` initialises.
        dtype: of the weights.
        resize: for position embeddings, where only their number differs from the checkpoint's.

    Raises:
        SpecError: weights that cannot be loaded, are incomplete, or do not fit the configuration.
    """
    # Pooling layers after the features are not used, and many checkpoints lack them.
    config = config_of(fields)
    config.vision_use_head = False
    cls = tower_class(config)
    pools = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if pools else {}
    if weights == "random":
        return _encoder(cast(cls(config, **options), dtype))
    published = own_config(load_transformers(AutoConfig, source))
    if published.model_type != config.model_type:
        raise SpecError(
            f"weights {source!r}: are of {published.model_type!r}, the preset says "
            f"{config.model_type!r}"
        )
    published.vision_use_head = False
    check_config(published, config, source, free=INPUT_SIZES | BACKBONE_STAGES)
    tower, info = load_transformers(
        cls, source, config=published, dtype=dtype, output_loading_info=True, **options
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise SpecError(f"weights {source!r}: {missing[0]} is missing ({len(missing)} in all)")
    return resized(_encoder(tower), config, options, source, resize)


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    if not model.config.is_encoder_decoder:
        return model
    encoder: PreTrainedModel = model.get_encoder()
    return encoder


def resized(
    tower: PreTrainedModel,
    config: PretrainedConfig,
    options: Mapping[str, Any],
    source: str,
    resize: Resize,
) -> PreTrainedModel:
    """Return the encoder with as many position embeddings as the configuration says."""
    with torch.device("meta"):
        shapes = {
            name: tuple(t.shape) for name, t in type(tower)(config, **options).state_dict().items()
        }
    state = tower.state_dict()
    different = [name for name, shape in shapes.items() if tuple(state[name].shape) != shape]
    ours, theirs = config.to_dict(), tower.config.to_dict()
    if not different and all(ours.get(name) == theirs.get(name) for name in INPUT_SIZES):
        return tower
    for name in different:
        if len(different) > 1 or "pos" not in name:
            raise SpecError(
                f"weights {source!r}: {name} is {tuple(state[name].shape)}, for this size of input "
                f"{shapes[name]}; {config.model_type!r} takes that of its checkpoint alone"
            )
        state[name] = resize(state[name], shapes[name])
    fitted = type(tower)(config, **options)
    fitted.load_state_dict(state)
    return cast(fitted, tower.dtype)
