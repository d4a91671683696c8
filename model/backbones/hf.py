"""Backbones of any class that transformers' AutoModelForCausalLM and …Seq2SeqLM know.

Several classes change their logits around the output layer: Gemma 2 caps them, Cohere and Granite
scale them, T5 v1.0 scales the layer's input. `MultimodalLM` calls the output layer alone, at
positions with a target: the layer then does the same itself.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from model.spec import SpecError
from model.spec.hf_backbones import HfCausal, HfSeq2Seq
from model.weights import Weights, check_config, load_transformers, source_options


def hf_config(spec: HfCausal | HfSeq2Seq) -> PretrainedConfig:
    """Return transformers' configuration of a spec.

    Raises:
        SpecError: an architecture that this transformers does not know, or an invalid field.
    """
    fields = deepcopy(spec.config)
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, TypeError, KeyError) as error:  # transformers validates with ValueErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(f"backbone of model_type {spec.model_type!r}: {reason}") from error


def build(spec: HfCausal | HfSeq2Seq, *, weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
    """Return the backbone with published or random weights.

    Raises:
        SpecError: weights that cannot be loaded, that differ from the spec, or that lack tensors.
    """
    config = hf_config(spec)
    auto = AutoModelForSeq2SeqLM if spec.seq2seq else AutoModelForCausalLM
    if weights == "random":
        backbone = _from_config(auto, config, dtype)
    else:
        backbone = _load(auto, spec.weights, config, dtype)
    finish_logits(backbone)
    return backbone


def _from_config(
    auto: Any,  # noqa: ANN401 -- an Auto class of transformers, which has no type for them
    config: PretrainedConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    try:
        backbone: PreTrainedModel = auto.from_config(config, dtype=dtype)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(f"backbone of model_type {config.model_type!r}: {reason}") from error
    return backbone


def _load(
    auto: Any,  # noqa: ANN401 -- as above
    source: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    name, options = source_options(source)
    published = load_transformers(AutoConfig, name, **options)
    check_config(published, config, source)
    if "gguf_file" not in options:
        options["config"] = config
    loaded, found = load_transformers(auto, name, dtype=dtype, output_loading_info=True, **options)
    if found["missing_keys"]:
        raise SpecError(f"weights {source!r}: missing {sorted(found['missing_keys'])[:3]}")
    if "gguf_file" not in options:
        return loaded
    # A model of a quantized file refuses `save_pretrained`, although its weights are whole.
    backbone = _from_config(auto, config, dtype)
    backbone.load_state_dict(loaded.state_dict())
    return backbone


def finish_logits(backbone: PreTrainedModel) -> None:
    """Let the output layer, called alone, return the logits that the class returns, in place.

    `model.compose` refuses a class whose logits are others even so.
    """
    config = backbone.config
    scale = 1.0
    if isinstance(getattr(backbone, "logit_scale", None), float | int):  # Cohere
        scale *= backbone.logit_scale
    if getattr(config, "logits_scaling", None):  # Granite
        scale /= config.logits_scaling
    if getattr(config, "scale_decoder_outputs", config.model_type == "umt5"):  # T5 v1.0
        scale *= config.d_model**-0.5
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2, §2
    if scale == 1.0 and cap is None:
        return
    within_class = False

    def enter(_: nn.Module, __: object) -> None:
        nonlocal within_class
        within_class = True

    def leave(_: nn.Module, __: object, ___: object) -> None:
        nonlocal within_class
        within_class = False

    def finish(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        if within_class:
            return logits
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    backbone.register_forward_pre_hook(enter)
    backbone.register_forward_hook(leave, always_call=True)
    backbone.get_output_embeddings().register_forward_hook(finish)
