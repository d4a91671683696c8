"""A system of one's own parts: branches, backbone, and stages as most published systems have them.

PT trains the projectors alone, SFT also adapters in the backbone (survey §3.1 and §3.2); rates and
LoRA are those of LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744, table 9, and its LoRA script).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from model.compose.backbones import lora_targets
from model.presets.blocks import LORA, PROJECTORS
from model.presets.templates import CONTINUATION
from model.spec import InputBranchSpec, Lora, ModelSpec, SpecError, Stage, System
from model.spec.backbones import Backbone
from model.spec.input_branches import Encoder, Modality, Projector
from model.spec.projectors import Mlp
from model.weights import load_tokenizer

VIDEO_FRAMES = 8
"""Sampled from a video unless the preset file says otherwise."""
MAX_TOKENS = 2048
_MANY_FRAMES, _FRAMES = 150, 5
"""Tokens of a sound above which five become one: three seconds of Whisper's or wav2vec 2.0's."""
_MANY_PATCHES = 1000
"""Tokens of a picture above which four become one."""


def compose(
    name: str, encoders: Mapping[Modality, Encoder], backbone: Backbone, projector: Projector | None
) -> System:
    """Return a system of encoders and a backbone, with stages.

    Args:
        name: of the system.
        encoders: by modality; two that are equal become one module.
        backbone: the language model.
        projector: of every branch; None for one that suits the number of tokens.

    Raises:
        SpecError: parts that do not fit each other.
    """
    branches: list[InputBranchSpec] = []
    for modality, encoder in encoders.items():
        owner = next((b.modality for b in branches if b.encoder == encoder), None)
        branch = InputBranchSpec(
            modality=modality,
            encoder=encoder,
            encoder_of=owner,
            projector=projector or default_projector(encoder),
            frames=VIDEO_FRAMES if modality == "video" else 1,
        )
        if branch.tokens >= backbone.max_positions:
            raise SpecError(
                f"{modality}: {branch.tokens} tokens do not fit in the {backbone.max_positions} "
                "positions of the backbone; choose a projector that shortens them"
            )
        branches.append(branch)
    pt = _pt(min(MAX_TOKENS, backbone.max_positions))
    return System(
        name=name,
        model=ModelSpec(inputs=tuple(branches), backbone=backbone),
        pt=pt,
        sft=replace(
            pt,
            trainable=(PROJECTORS, LORA),
            peft=Lora(rank=64, alpha=128, targets=lora_targets(backbone), learning_rate=2e-4),
            prompt="chat",
            learning_rate=2e-5,
            global_batch=128,
            micro_batch=8,
        ),
    )


def _pt(max_tokens: int) -> Stage:
    return Stage(
        trainable=(PROJECTORS,),
        prompt="plain",
        learning_rate=1e-3,
        global_batch=256,
        micro_batch=16,
        max_tokens=max_tokens,
        recompute=True,
    )


def with_template(backbone: Backbone) -> Backbone:
    """Return a backbone with a format of dialogues: a base model has none of its own.

    Raises:
        SpecError: there is no tokenizer.
    """
    if backbone.template is not None or load_tokenizer(backbone.weights).chat_template:
        return backbone
    return replace(backbone, template=CONTINUATION)


def default_projector(encoder: Encoder) -> Projector:
    """Return two linear layers; behind a merging of tokens where there are many.

    Sounds are shortened as in SLAM-LLM, pictures of an even grid as in InternVL 1.5 (see `Mlp`).
    """
    if "audio" in encoder.media:
        return Mlp(shorten="stack", factor=_FRAMES) if encoder.tokens > _MANY_FRAMES else Mlp()
    side = math.isqrt(encoder.tokens)
    square = side**2 == encoder.tokens and side % 2 == 0
    many = encoder.tokens > _MANY_PATCHES and square
    return Mlp(shorten="pixel_shuffle", factor=2, norm_input=True) if many else Mlp()
