"""PaLI-X. Facts and sources: docs/systems.md."""

from dataclasses import replace

from model.presets.blocks import BACKBONE, PROJECTORS
from model.presets.templates import CONTINUATION
from model.spec.backbones import T5
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.projectors import Mlp
from model.spec.system import Stage, System
from model.spec.vit import Vit22B


def pali_x() -> System:
    """PaLI-X (2023, arXiv:2305.18565): ViT-22B and a UL2 of 32B, neither of which is published.

    Both are stand-ins: the language model's 50 layers are published, its widths are not and are
    UL2's. Learning rates and batch sizes are not published. SFT is its fine-tuning.
    """
    stage = Stage(
        trainable=(PROJECTORS, BACKBONE),
        prompt="chat",
        learning_rate=1e-4,
        global_batch=512,
        micro_batch=8,
        max_tokens=1536,
        recompute=True,
    )
    image = InputBranchSpec(encoder=Vit22B(), projector=Mlp(depth=1))
    video = replace(image, modality="video", frames=4, encoder_of="image", projector_of="image")
    return System(
        name="pali_x",
        paper="arXiv:2305.18565",
        model=ModelSpec(inputs=(image, video), backbone=_ul2_32b()),
        pt=replace(stage, prompt="plain"),
        sft=stage,
    )


def _ul2_32b() -> T5:
    """Return UL2's widths (Tay et al. 2022) with 50 layers and PaLI's vocabulary."""
    return T5(
        weights="unpublished/ul2-32b",
        vocabulary=250_112,
        width=4096,
        mlp_width=16_384,
        layers=50,
        heads=16,
        head_width=256,
        activation="silu",
        max_positions=2048,
        template=CONTINUATION,
    )
