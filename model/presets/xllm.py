"""X-LLM. Facts and sources: docs/systems.md."""

from dataclasses import replace

from model.presets.blocks import blip_2_qformer
from model.presets.templates import CHATGLM
from model.spec.audio import CFormer
from model.spec.backbones import ChatGlm
from model.spec.image import EvaClip
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.projectors import Mlp
from model.spec.system import Stage, System


def x_llm() -> System:
    """X-LLM (2023, arXiv:2305.04160) with ChatGLM-6B: pictures, videos and speech as languages.

    PT is its second stage, which connects each interface to the language model: originally one
    after the other with different rates (3e-5, 1e-5, 1e-4), here mixed at the picture's rate. A
    video is five frames; its Q-Former starts from BLIP-2's like the picture's, but is a separate
    module. Its first stage trains the Q-Former as in BLIP-2.
    """
    stage = Stage(
        trainable=("inputs.*.projector.head.*", "inputs.audio.projector.*"),
        prompt="chat",
        learning_rate=1e-6,
        weight_decay=0.05,
        epochs=2,
        global_batch=16,
        micro_batch=4,
        max_tokens=512,
        recompute=True,
    )
    return System(
        name="x_llm",
        paper="arXiv:2305.04160",
        model=ModelSpec(inputs=_input_branches(), backbone=ChatGlm(template=CHATGLM)),
        pt=replace(
            stage,
            trainable=(
                "inputs.*.projector.*",
                "inputs.audio.encoder.project.*",
                "inputs.audio.encoder.transformer.*",
            ),
            prompt="plain",
            learning_rate=3e-5,
            global_batch=256,
        ),
        sft=stage,
    )


def _input_branches() -> tuple[InputBranchSpec, ...]:
    image = InputBranchSpec(
        encoder=EvaClip(),
        projector=blip_2_qformer(published=True),
        before="<Image>",
        after="</Image>",
    )
    video = replace(
        image,
        modality="video",
        frames=5,
        encoder_of="image",
        before="<Video>",
        after="</Video>",
    )
    audio = InputBranchSpec(
        modality="audio",
        encoder=CFormer(weights="x_llm_speech.safetensors"),
        projector=Mlp(depth=1),
        before="<Speech>",
        after="</Speech>",
    )
    return image, video, audio
