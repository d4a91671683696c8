"""Trained weights of NExT-GPT, MiniGPT-5 and CoDi-2 as published, by our parameter names.

Their checkpoints hold what was trained, without the frozen parts. New tokens are the last rows of
the whole embedding and output matrices; of these only the signal tokens' become parameters of ours,
so the matrices' other rows must be those of the backbone that the preset names.

| published | ours |
|---|---|
| NExT-GPT `gen_text_hidden_fcs.0`, `…_video.0`, `…_audio.0` | `outputs.*.projector` |
| NExT-GPT `llama_proj`; CoDi-2 `codi_llama_proj` | `inputs.image.projector` |
| MiniGPT-5 `fc`, `llm_to_t2i_mapping`, `t2i_decoder_prompt` | `outputs.image.projector` |
| CoDi-2 `codi_llama_decode` | `outputs.image.projector` |
| rows of `embed_tokens`, `lm_head` | `outputs.*.signals`, `outputs.*.head` |
| `…lora_A.default`, `…lora_B.default` in `layers` | the same in `backbone.model.layers` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from model.output_projectors import output_mlp, output_transformer
from model.spec import SpecError

_LORA = re.compile(r"\.(layers\.\d+\..+\.lora_[AB]\.default\.weight)$")
_NEXT_GPT = {"image": ("", 4), "video": ("_video", 24), "audio": ("_audio", 8)}
"""Modality → suffix of its projector's name, and number of signal tokens. Each modality's are added
after two tokens for the ends of a medium (`anyToImageVideoAudio.py`, `_add_image_token` …)."""
_MINIGPT_5_SIGNALS = 8


def next_gpt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of NExT-GPT's `pytorch_model.pt` by the names of preset `next_gpt`.

    Raises:
        SpecError: tensors that the checkpoint should have are missing.
    """
    found = _renamed(state, "llama_proj.", "inputs.image.projector.layers.0.") | _lora(state)
    end = 0
    for modality, (suffix, signals) in reversed(_NEXT_GPT.items()):
        found |= _signal_rows(state, modality, signals, end)
        end += signals + 2
        published = f"gen_text_hidden_fcs{suffix}.0."
        projector = output_transformer.convert_state_dict(_below(state, published))
        found |= {f"outputs.{modality}.projector.{name}": each for name, each in projector.items()}
    return found


def minigpt_5(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of MiniGPT-5's `stage1_….ckpt` or `stage2_….ckpt` by our names.

    Args:
        state: its `state_dict`. The last token, `<ImageHere>`, marks a picture in the input.

    Raises:
        SpecError: tensors that the checkpoint should have are missing.
    """
    names = ("fc.", "llm_to_t2i_mapping.", "t2i_decoder_prompt")
    projector = {name: each for name, each in state.items() if name.startswith(names)}
    converted = output_transformer.convert_state_dict(projector)
    found = {f"outputs.image.projector.{name}": tensor for name, tensor in converted.items()}
    return found | _signal_rows(state, "image", _MINIGPT_5_SIGNALS, 1) | _lora(state)


def codi_2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of CoDi-2's projectors and LoRA by our names.

    It has no signal tokens: the state that predicts the token after `<p>` is decoded.

    Raises:
        SpecError: tensors that the checkpoint should have are missing.
    """
    decoder = output_mlp.convert_state_dict(_below(state, "codi_llama_decode."))
    found = {f"outputs.image.projector.{name}": tensor for name, tensor in decoder.items()}
    return (
        found | _renamed(state, "codi_llama_proj.", "inputs.image.projector.layers.") | _lora(state)
    )


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    found = {n.removeprefix(prefix): each for n, each in state.items() if n.startswith(prefix)}
    if not found:
        raise SpecError(f"checkpoint: has no tensor {prefix}…; want the published one")
    return found


def _renamed(state: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}{name}": tensor for name, tensor in _below(state, theirs).items()}


def _signal_rows(
    state: Mapping[str, Tensor], modality: str, signals: int, end: int
) -> dict[str, Tensor]:
    """Return the signal tokens' rows of both matrices, which `end` other new tokens follow."""
    found = {}
    for matrix, ours in (("embed_tokens", "signals"), ("lm_head", "head")):
        # peft keeps a copy of a matrix that is trained next to LoRA, and the original one.
        pattern = re.compile(rf"\.{matrix}\.(modules_to_save\.default\.)?weight$")
        named = [tensor for name, tensor in state.items() if pattern.search(name)]
        if len(named) != 1:
            raise SpecError(f"checkpoint: {len(named)} tensors are named {matrix}, want one")
        [rows] = named
        last = len(rows) - end
        found[f"outputs.{modality}.{ours}.weight"] = rows[last - signals : last]
    return found


def _lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of LoRA; none of a stage without."""
    matches = ((_LORA.search(name), tensor) for name, tensor in state.items())
    return {f"backbone.model.{match[1]}": tensor for match, tensor in matches if match}
