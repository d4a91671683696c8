"""CogVLM. Facts and sources: docs/systems.md."""

from dataclasses import replace

from model.presets.blocks import vicuna_7b
from model.presets.templates import COGVLM
from model.spec.fusion import VisualExpert
from model.spec.glu_adapter import GluAdapter
from model.spec.image import Eva2Clip
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.system import ParameterGroup, Stage, System


def cogvlm() -> System:
    """CogVLM-17B (2023, arXiv:2311.03079): a visual expert in every layer of Vicuna v1.5 7B.

    Pictures have 490 pixels, as in its chat model; its pre-training starts with 224. The learning
    rate of PT is not published. SFT trains everything, the encoder at a tenth of the rate.
    """
    stage = Stage(
        trainable=("inputs.image.*", "backbone.*"),
        prompt="chat",
        learning_rate=1e-5,
        weight_decay=0.05,
        global_batch=1024,
        micro_batch=8,
        recompute=True,
    )
    return System(
        name="cogvlm",
        paper="arXiv:2311.03079",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=Eva2Clip(), projector=GluAdapter()),),
            backbone=replace(vicuna_7b(), template=COGVLM),
            fusion=VisualExpert(),
        ),
        pt=replace(
            stage,
            trainable=("inputs.image.projector.*", "backbone.*.expert*"),
            prompt="plain",
            learning_rate=1e-4,
            global_batch=8192,
            micro_batch=16,
        ),
        sft=replace(
            stage, groups=(ParameterGroup(pattern="inputs.image.encoder.*", learning_rate=1e-6),)
        ),
    )
