"""MiniGPT-4, MiniGPT-v2, MiniGPT-5 and BuboGPT: EVA-CLIP with a Vicuna or LLaMA-2.

Facts and sources: docs/systems.md.
"""

from dataclasses import replace

from model.presets.blocks import (
    LORA,
    PROJECTORS,
    blip_2_qformer,
    eva_clip_448,
    imagebind_audio,
    llama_2_7b,
    vicuna_v0_7b,
    vicuna_v0_13b,
)
from model.presets.generators import stable_diffusion_2_1_base
from model.presets.templates import MINIGPT_4, MINIGPT_V2
from model.spec.backbones import Llama
from model.spec.image import EvaClip
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.output_branches import Generation, OutputBranchSpec, OutputTransformer
from model.spec.peft import Lora
from model.spec.projectors import TokenConcat
from model.spec.system import TRAINABLE_OUTPUTS, ParameterGroup, Stage, System

_HEAD = "inputs.image.projector.head.*"


def minigpt_4() -> System:
    """MiniGPT-4 (2023, arXiv:2304.10592) with Vicuna v0 13B: only the linear head is trained."""
    return System(
        name="minigpt_4",
        paper="arXiv:2304.10592",
        model=_minigpt_4_model(vicuna_v0_13b(MINIGPT_4)),
        pt=Stage(
            trainable=(_HEAD,),
            prompt="plain",
            learning_rate=1e-4,
            weight_decay=0.05,
            warmup=0.25,
            global_batch=256,
            micro_batch=64,
            max_tokens=512,
            recompute=True,
        ),
        sft=Stage(
            trainable=(_HEAD,),
            prompt="chat",
            learning_rate=3e-5,
            weight_decay=0.05,
            global_batch=12,
            micro_batch=6,
            max_tokens=512,
            recompute=True,
        ),
    )


def minigpt_5() -> System:
    """MiniGPT-5 (2023, arXiv:2310.02239): MiniGPT-4 7B with eight vokens for Stable Diffusion 2.1.

    PT is its first stage, on captions: signal tokens and output projector. The linear head on the
    input side, published from MiniGPT-4, is new here and also trained in PT. IT adds LoRA and keeps
    the output projector's first layers and queries.
    """
    projector = OutputTransformer(width=1024, heads=8, entry="mlp", projects=False, states="before")
    output = OutputBranchSpec(
        signals=8,
        projector=projector,
        generator=replace(stable_diffusion_2_1_base(), min_snr=5.0),
        condition_dropout=0.1,
    )
    stage = Stage(
        trainable=(_HEAD, *TRAINABLE_OUTPUTS),
        generation=Generation(text=0.01, align=0.1, denoise=1.0),
        prompt="plain",
        learning_rate=2e-5,
        weight_decay=0.01,
        warmup=0.008,
        schedule="linear",
        groups=(
            ParameterGroup(pattern=_HEAD, learning_rate=1e-4),
            ParameterGroup(pattern="outputs.*.projector.*", learning_rate=2e-4),
        ),
        gradient_clipping=0.0,
        epochs=2,
        global_batch=48,
        micro_batch=2,
        max_tokens=1024,
        recompute=True,
    )
    return System(
        name="minigpt_5",
        paper="arXiv:2310.02239",
        model=replace(_minigpt_4_model(vicuna_v0_7b(MINIGPT_4)), outputs=(output,)),
        pt=stage,
        sft=replace(
            stage,
            trainable=(
                LORA,
                "outputs.*.signals.*",
                "outputs.*.head.*",
                "outputs.*.projector.encoder*",
                "outputs.*.projector.decoder*",
            ),
            peft=Lora(rank=8, alpha=16, targets=("q_proj", "v_proj")),
            prompt="chat",
            groups=(),
        ),
    )


def _minigpt_4_model(backbone: Llama) -> ModelSpec:
    image = InputBranchSpec(
        encoder=EvaClip(),
        projector=blip_2_qformer(published=True),
        before="<Img>",
        after="</Img>",
    )
    return ModelSpec(inputs=(image,), backbone=backbone)


def minigpt_v2() -> System:
    """MiniGPT-v2 (2023, arXiv:2310.09478) with LLaMA-2-chat 7B, at 448 pixels.

    PT is its first stage, SFT its third; the second differs from SFT in data and batch size (64).
    """
    stage = Stage(
        trainable=(PROJECTORS, LORA),
        peft=Lora(rank=64, alpha=16, targets=("q_proj", "v_proj")),
        prompt="chat",
        learning_rate=1e-5,
        weight_decay=0.05,
        global_batch=24,
        micro_batch=6,
        max_tokens=1280,
        recompute=True,
    )
    image = InputBranchSpec(
        encoder=eva_clip_448(), projector=TokenConcat(group_size=4), before="<Img>", after="</Img>"
    )
    return System(
        name="minigpt_v2",
        paper="arXiv:2310.09478",
        model=ModelSpec(
            inputs=(image,), backbone=llama_2_7b("meta-llama/Llama-2-7b-chat-hf", MINIGPT_V2)
        ),
        pt=replace(stage, learning_rate=1e-4, global_batch=96, micro_batch=12),
        sft=stage,
    )


def bubogpt() -> System:
    """BuboGPT (2023, arXiv:2307.08581) with Vicuna v0 7B: a Q-Former each for pictures and sounds.

    The Q-Former for pictures is MiniGPT-4's and stays frozen; the one for sounds is new and trained
    in PT, its head in both stages. Sounds are six clips (published: 5 s each, here 2 s), encoded by
    ImageBind's audio trunk without its head. The head for pictures, published from MiniGPT-4, is
    new here and also trained in PT. Batch sizes assume 8 GPUs.
    """
    stage = Stage(
        trainable=("inputs.*.projector.head.*",),
        prompt="chat",
        learning_rate=3e-5,
        weight_decay=0.05,
        warmup=0.1,
        global_batch=96,
        micro_batch=12,
        max_tokens=512,
        recompute=True,
    )
    return System(
        name="bubogpt",
        paper="arXiv:2307.08581",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(
                    encoder=EvaClip(),
                    projector=blip_2_qformer(published=True),
                    before="<Vision>",
                    after="</Vision>",
                ),
                InputBranchSpec(
                    modality="audio",
                    encoder=imagebind_audio(clips=6, output="tokens"),
                    projector=replace(blip_2_qformer(), joint=True),
                    before="<Audio>",
                    after="</Audio>",
                ),
            ),
            backbone=vicuna_v0_7b(MINIGPT_4),
        ),
        pt=replace(
            stage,
            trainable=("inputs.audio.projector.*", _HEAD),
            prompt="plain",
            learning_rate=1e-4,
            warmup=0.25,
            global_batch=512,
            micro_batch=64,
        ),
        sft=stage,
    )
