"""Specs of single components from their transformers configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig

from model.backbones.llama import llama_config
from model.backbones.opt import opt_config
from model.backbones.t5 import t5_config
from model.compose.backbones import backbone_of
from model.convert.wiring import check_agreement
from model.encoders.clip import clip_config
from model.encoders.eva_clip import eva_config
from model.input_projectors.qformer import qformer_config
from model.spec import ChatTemplate, ClipVision, Llama, SpecError
from model.spec.backbones import T5, Backbone, Opt
from model.spec.image import EvaClip
from model.spec.qformer import QFormer
from model.weights import config_differences


def clip_vision(config: PretrainedConfig, like: ClipVision, weights: str) -> ClipVision:
    """Return a preset's CLIP encoder with the sizes of a configuration.

    Raises:
        SpecError: the configuration has a setting that the spec cannot express.
    """
    if config.model_type != "clip_vision_model":
        raise SpecError(
            f"vision_config.model_type: {config.model_type!r}, must be 'clip_vision_model'"
        )
    spec = replace(
        like,
        weights=weights,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        processor=like.processor.at(config.image_size),
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        norm_eps=config.layer_norm_eps,
    )
    check_agreement(config, clip_config(spec), "vision_config")
    return spec


def eva_clip(config: PretrainedConfig, like: EvaClip, weights: str) -> EvaClip:
    """Return a preset's EVA-CLIP encoder with the sizes of a configuration; raises as above."""
    spec = replace(
        like,
        weights=weights,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        processor=like.processor.at(config.image_size),
        patch_size=config.patch_size,
        norm_eps=config.layer_norm_eps,
    )
    check_agreement(config, eva_config(spec), "vision_config")
    return spec


def qformer(config: PretrainedConfig, like: QFormer, *, queries: int) -> QFormer:
    """Return a preset's Q-Former with the sizes of a configuration; raises as above."""
    spec = replace(
        like,
        weights="",
        queries=queries,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        cross_attention_frequency=config.cross_attention_frequency,
        vocabulary=config.vocab_size,
        max_positions=config.max_position_embeddings,
        dropout=config.hidden_dropout_prob,
    )
    check_agreement(config, qformer_config(spec, config.encoder_hidden_size), "qformer_config")
    return spec


def backbone(config: PretrainedConfig, template: ChatTemplate | None, weights: str) -> Backbone:
    """Return the spec of a backbone from its configuration: one of ours where it can express that.

    Raises:
        SpecError: a language model that cannot be a backbone.
    """
    if config.model_type in _BACKBONES:
        to_spec, to_config = _BACKBONES[config.model_type]
        spec = to_spec(config, template, weights)
        if not any(config_differences(config, to_config(spec))):
            return spec
    return replace(backbone_of(weights, config, config.to_dict()), template=template)


def _llama(config: PretrainedConfig, template: ChatTemplate | None, weights: str) -> Llama:
    return Llama(
        weights=weights,
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
        tied_embeddings=config.tie_word_embeddings,
        template=template,
    )


def _opt(config: PretrainedConfig, template: ChatTemplate | None, weights: str) -> Opt:
    return Opt(
        weights=weights,
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        mlp_width=config.ffn_dim,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        template=template,
    )


def _t5(config: PretrainedConfig, template: ChatTemplate | None, weights: str) -> T5:
    return T5(
        weights=weights,
        vocabulary=config.vocab_size,
        width=config.d_model,
        mlp_width=config.d_ff,
        layers=config.num_layers,
        heads=config.num_heads,
        head_width=config.d_kv,
        activation=config.dense_act_fn,
        template=template,
    )


# Per model type: configuration to spec, and spec to configuration.
_BACKBONES: Mapping[str, tuple[Callable[..., Backbone], Callable[[Any], PretrainedConfig]]] = {
    "llama": (_llama, llama_config),
    "opt": (_opt, opt_config),
    "t5": (_t5, t5_config),
}
