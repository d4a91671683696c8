"""The spec of any language model that transformers knows, from its folder or its name on the hub.

A tiny model of the same class, with random weights, shows whether the class can serve as a backbone
here, and whether samples may be packed.

Shapes: b sequences, t positions, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from model import packing
from model.backbones import hf
from model.build import BACKBONES
from model.peft.targets import block_linear_names
from model.spec import SpecError
from model.spec.backbones import Backbone
from model.spec.hf_backbones import REQUIRED, HfCausal, HfSeq2Seq
from model.weights import load_transformers, source_options

_NOT_OF_THE_MODEL = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)
_SAMPLES = (3, 9, 2)
"""Lengths of packed samples; one is longer than a tiny model's sliding window."""
_TOLERANCE = 1e-4


def backbone_from(source: str) -> HfCausal | HfSeq2Seq:
    """Return the spec of the language model in a folder or repository, with its own template.

    Args:
        source: a hub name or a folder, or a GGUF file in one (`model.weights.source_options`).

    Raises:
        SpecError: there is no such model, or it cannot serve as a backbone; the line says why.
    """
    name, options = source_options(source)
    config = load_transformers(AutoConfig, name, **options)
    of_gguf = "gguf_file" in options
    fields = config.to_dict() if of_gguf else PretrainedConfig.get_config_dict(name)[0]
    return backbone_of(source, config, fields)


def backbone_of(
    source: str, config: PretrainedConfig, fields: Mapping[str, Any]
) -> HfCausal | HfSeq2Seq:
    """Return the spec of the language model of a configuration; raises as `backbone_from`.

    Args:
        source: of its weights.
        config: transformers' object.
        fields: the configuration as it was published.
    """
    return _probe(_spec(source, config, _fields_of_the_model(config, fields)))


def _fields_of_the_model(config: PretrainedConfig, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published fields that make the model, and the sizes that they leave out.

    Dropout is zero, as for all backbones here: most are frozen.
    """
    fields = {key: value for key, value in published.items() if key not in _NOT_OF_THE_MODEL}
    for names in REQUIRED:
        if not any(isinstance(fields.get(one), int) for one in names):
            known = config.to_dict()
            fields |= {one: known[one] for one in names if isinstance(known.get(one), int)}
    dropouts = {key: 0.0 for key, value in fields.items() if _is_dropout(key, value)}
    return fields | dropouts


def _is_dropout(name: str, value: object) -> bool:
    return isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop"))


def _spec(source: str, config: PretrainedConfig, fields: dict[str, Any]) -> HfCausal | HfSeq2Seq:
    """Return the spec for a configuration, or raise SpecError with the reason why there is none."""
    kind = config.model_type
    if "quantization_config" in fields:
        method = fields["quantization_config"].get("quant_method", "another format")
        raise SpecError(f"{source}: quantized ({method}); want the unquantized weights, or GGUF")
    if "text_config" in fields:
        raise SpecError(
            f"{source}: {kind!r} is a multimodal model; want a language model, or "
            "`python -m pipeline import`"
        )
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.is_encoder_decoder:
        spec: HfCausal | HfSeq2Seq = HfSeq2Seq(weights=source, config=fields)
        if config.decoder_start_token_id not in (None, config.pad_token_id):
            raise SpecError(
                f"{source}: {kind!r} starts answers with token {config.decoder_start_token_id}, "
                f"not with padding ({config.pad_token_id}) as T5 does, which is not supported"
            )
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder:
        spec = HfCausal(weights=source, config=fields)
    else:
        raise SpecError(f"{source}: {kind!r} is not a language model that transformers can build")
    return spec


def _probe(spec: HfCausal | HfSeq2Seq) -> HfCausal | HfSeq2Seq:
    """Try a tiny model of the class; return the spec with what was found out.

    Raises:
        SpecError: its logits are not those of its output layer on spliced embeddings.
    """
    where = f"{spec.weights}: {spec.model_type!r} cannot be a backbone"
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(0)
            backbone = _expressive(hf.build(spec.tiny(), weights="random", dtype=torch.float32))
            logits, own = _logits(backbone, seq2seq=spec.seq2seq)
            packs = not spec.seq2seq and _packs(backbone)
    except SpecError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(f"{where}: a tiny one fails ({type(error).__name__}: {reason})") from error
    if not torch.allclose(logits, own, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise SpecError(
            f"{where}: its logits are not those of its output layer for the same embeddings"
        )
    return replace(spec, supports_packing=packs) if isinstance(spec, HfCausal) else spec


def _expressive(backbone: PreTrainedModel) -> PreTrainedModel:
    """Return the backbone with weights so large that every function of it matters."""
    for weight in backbone.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
    return backbone.eval()


def _logits(backbone: PreTrainedModel, *, seq2seq: bool) -> tuple[Tensor, Tensor]:
    """Return the logits (b, t, v) of the class for ids, and ours for their embeddings."""
    ids_bt = torch.arange(3, 11)[None]
    mask_bt = torch.ones_like(ids_bt)
    embeddings_btd = backbone.get_input_embeddings()(ids_bt)
    head = backbone.get_output_embeddings()
    if not seq2seq:
        theirs = backbone(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).logits
        hidden_btd = backbone.get_decoder()(
            inputs_embeds=embeddings_btd, attention_mask=mask_bt, use_cache=False
        ).last_hidden_state
        return theirs, head(hidden_btd)
    theirs = backbone(input_ids=ids_bt, attention_mask=mask_bt, decoder_input_ids=ids_bt).logits
    encoded_btd = backbone.get_encoder()(
        inputs_embeds=embeddings_btd, attention_mask=mask_bt
    ).last_hidden_state
    hidden_btd = backbone.get_decoder()(
        input_ids=ids_bt,
        encoder_hidden_states=encoded_btd,
        encoder_attention_mask=mask_bt,
        use_cache=False,
    ).last_hidden_state
    return theirs, head(hidden_btd)


def _packs(backbone: PreTrainedModel) -> bool:
    """Return whether packed samples have the hidden states that they have alone."""
    samples = [torch.arange(5, 5 + length)[None] for length in _SAMPLES]
    decoder = backbone.get_decoder()
    alone_btd = torch.cat(
        [decoder(input_ids=ids_bt, use_cache=False).last_hidden_state for ids_bt in samples], dim=1
    )
    positions_bt = torch.cat([torch.arange(length) for length in _SAMPLES])[None]
    packing.attend_within_samples(backbone)
    try:
        packed_btd = decoder(
            input_ids=torch.cat(samples, dim=1),
            use_cache=False,
            **packing.decoder_kwargs(backbone, positions_bt),
        ).last_hidden_state
    except (TypeError, ValueError, RuntimeError):  # the class takes no such arguments
        return False
    return torch.allclose(packed_btd, alone_btd, atol=_TOLERANCE, rtol=_TOLERANCE)


def lora_targets(spec: Backbone) -> tuple[str, ...]:
    """Return the names of all linear layers in a backbone's blocks, as QLoRA adapts them.

    Raises:
        SpecError: it has none.
    """
    with torch.device("meta"):
        backbone = BACKBONES[type(spec)].build(spec.tiny(), weights="random", dtype=torch.float32)
    return block_linear_names(backbone)
