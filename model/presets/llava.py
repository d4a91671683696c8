"""LLaVA and systems with its architecture: CLIP's patches, one or two linear layers, a LLaMA.

Liu et al. 2023, *Visual Instruction Tuning* and *Improved Baselines with Visual Instruction
Tuning*; Shikra, ChatSpot, VILA. Facts and sources: docs/systems.md.
"""

from dataclasses import replace

from model.presets.blocks import (
    BACKBONE,
    LORA,
    PROJECTORS,
    clip_large_224,
    clip_large_336,
    llama_2_7b,
    llama_2_13b,
    llama_7b,
    llama_13b,
    llava_lora,
    vicuna_7b,
    vicuna_13b,
)
from model.presets.templates import VICUNA_V0, VICUNA_V1
from model.spec.backbones import Llama
from model.spec.image_processor import pad_to_square
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.projectors import Mlp
from model.spec.system import Stage, System


def llava() -> System:
    """LLaVA (2023, arXiv:2304.08485) with Vicuna v0 13B; 256 patches through one linear layer.

    Stages as in §5: CC-595K for one epoch, then 158K instructions for three.
    """
    return System(
        name="llava",
        paper="arXiv:2304.08485",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Mlp(depth=1)),),
            backbone=llama_13b("Vision-CAIR/vicuna", VICUNA_V0),
        ),
        pt=Stage(
            trainable=(PROJECTORS,),
            prompt="plain",
            learning_rate=2e-3,
            global_batch=128,
            micro_batch=16,
            recompute=True,
        ),
        sft=Stage(
            trainable=(PROJECTORS, BACKBONE),
            prompt="chat",
            learning_rate=2e-5,
            epochs=3,
            global_batch=32,
            micro_batch=4,
            recompute=True,
        ),
    )


def llava_1_5_7b() -> System:
    """LLaVA-1.5 (2023, arXiv:2310.03744) with Vicuna v1.5 7B, SFT in its LoRA variant."""
    return _llava_1_5("llava_1_5_7b", vicuna_7b())


def llava_1_5_13b() -> System:
    """LLaVA-1.5 (2023, arXiv:2310.03744) with Vicuna v1.5 13B, SFT in its LoRA variant."""
    return _llava_1_5("llava_1_5_13b", vicuna_13b())


def _llava_1_5(name: str, backbone: Llama) -> System:
    """Wire the published components; stages as in the paper's table 9."""
    projector = "inputs.image.projector.*"
    return System(
        name=name,
        paper="arXiv:2310.03744",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=clip_large_336(), projector=Mlp(depth=2)),),
            backbone=backbone,
        ),
        pt=Stage(
            trainable=(projector,),
            prompt="plain",
            learning_rate=1e-3,
            global_batch=256,
            micro_batch=32,
            recompute=True,
        ),
        sft=Stage(
            trainable=(projector, LORA),
            peft=llava_lora(),
            prompt="chat",
            learning_rate=2e-5,
            global_batch=128,
            micro_batch=16,
            recompute=True,
        ),
    )


def shikra() -> System:
    """Shikra (2023, arXiv:2306.15195) with Vicuna 7B: boxes as plain numbers in input and output.

    Both stages train the projector and the whole language model; SFT is the second stage of its
    configuration files, three epochs of its mixture.
    """
    stage = Stage(
        trainable=(PROJECTORS, BACKBONE),
        prompt="chat",
        learning_rate=2e-5,
        global_batch=64,
        micro_batch=8,
        recompute=True,
    )
    processor = replace(pad_to_square(224), pad="white")
    image = InputBranchSpec(
        encoder=replace(clip_large_224(), processor=processor),
        projector=Mlp(depth=1),
        before="<im_start>",
        after="<im_end>",
    )
    return System(
        name="shikra",
        paper="arXiv:2306.15195",
        model=ModelSpec(inputs=(image,), backbone=llama_7b("lmsys/vicuna-7b-v1.1", VICUNA_V1)),
        pt=stage,
        sft=replace(stage, epochs=3),
    )


def chatspot() -> System:
    """ChatSpot (2023, arXiv:2307.09474) with Vicuna 7B: points and boxes as normalised numbers.

    Resolution, learning rates and batch sizes are not published; they are LLaVA's.
    """
    return System(
        name="chatspot",
        paper="arXiv:2307.09474",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Mlp(depth=1)),),
            backbone=llama_7b("lmsys/vicuna-7b-v1.1", VICUNA_V1),
        ),
        pt=Stage(
            trainable=(PROJECTORS,),
            prompt="plain",
            learning_rate=2e-3,
            global_batch=128,
            micro_batch=16,
            recompute=True,
        ),
        sft=Stage(
            trainable=(PROJECTORS, BACKBONE),
            prompt="chat",
            learning_rate=2e-5,
            global_batch=128,
            micro_batch=16,
            recompute=True,
        ),
    )


def vila_7b() -> System:
    """VILA (2023, arXiv:2312.07533) with LLaMA-2 7B.

    PT is its second stage, on interleaved documents, which also trains the language model; the
    first trains the projector alone (1e-3), which `--set` can express. The projector is the paper's
    linear layer; the released scripts have two layers.
    """
    return _vila("vila_7b", llama_2_7b("meta-llama/Llama-2-7b-hf", VICUNA_V1))


def vila_13b() -> System:
    """VILA (2023, arXiv:2312.07533) with LLaMA-2 13B; see `vila_7b`."""
    return _vila("vila_13b", llama_2_13b("meta-llama/Llama-2-13b-hf", VICUNA_V1))


def _vila(name: str, backbone: Llama) -> System:
    stage = Stage(
        trainable=(PROJECTORS, BACKBONE),
        prompt="chat",
        learning_rate=1e-4,
        global_batch=2048,
        micro_batch=8,
        max_tokens=4096,
        recompute=True,
    )
    return System(
        name=name,
        paper="arXiv:2312.07533",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=clip_large_336(), projector=Mlp(depth=1)),),
            backbone=backbone,
        ),
        pt=replace(stage, prompt="plain", learning_rate=5e-5, global_batch=1024),
        sft=stage,
    )
