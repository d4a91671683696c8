"""Qwen-VL. Facts and sources: docs/systems.md."""

from dataclasses import replace

from model.presets.blocks import BACKBONE, CLIP_TOWER, PROJECTORS, vit_bigg_448
from model.presets.templates import CHATML
from model.spec.backbones import Qwen
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.projectors import QwenResampler
from model.spec.system import ParameterGroup, Stage, System


def qwen_vl() -> System:
    """Qwen-VL and, after SFT, Qwen-VL-Chat (2023, arXiv:2308.12966), at 448 pixels throughout.

    PT is its first stage, which it runs at 224 pixels, SFT its third; the second trains everything
    at once (5e-5, batch size 4096).
    """
    image = InputBranchSpec(
        encoder=vit_bigg_448(),
        projector=QwenResampler(),
        before="Picture {number}: <img>",
        after="</img>",
    )
    stage = Stage(
        trainable=(PROJECTORS, BACKBONE),
        prompt="chat",
        learning_rate=1e-5,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        warmup=0.375,
        global_batch=128,
        micro_batch=4,
        recompute=True,
    )
    return System(
        name="qwen_vl",
        paper="arXiv:2308.12966",
        model=ModelSpec(inputs=(image,), backbone=_qwen_7b()),
        pt=replace(
            stage,
            trainable=(*CLIP_TOWER, PROJECTORS),
            prompt="plain",
            learning_rate=2e-4,
            groups=(ParameterGroup(pattern="inputs.image.encoder.*", layer_decay=0.95),),
            warmup=0.01,
            global_batch=30_720,
            micro_batch=32,
            max_tokens=512,
        ),
        sft=stage,
    )


def _qwen_7b() -> Qwen:
    """Qwen 7B, 7.7 billion parameters (Bai et al. 2023, *Qwen technical report*, table 1)."""
    return Qwen(
        weights="Qwen/Qwen-7B",
        width=4096,
        mlp_width=11_008,
        layers=32,
        heads=32,
        template=CHATML,
    )
