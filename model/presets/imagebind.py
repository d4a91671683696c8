"""Systems with ImageBind as their only encoder: PandaGPT, NExT-GPT and CoDi-2.

Facts and sources: docs/systems.md.
"""

from dataclasses import replace

from model.presets.blocks import (
    ATTENTION,
    LORA,
    PROJECTORS,
    imagebind_audio,
    imagebind_of,
    llama_2_7b,
    vicuna_v0_7b,
    vicuna_v0_13b,
)
from model.presets.templates import CODI_2, PANDAGPT
from model.spec.generators import AudioLdm, AudioLdm2, StableDiffusion, TextToVideo, UnClip
from model.spec.imagebind import ImageBind
from model.spec.input_branches import InputBranchSpec, Modality, ModelSpec
from model.spec.output_branches import BranchWeights, Generation, OutputBranchSpec, OutputMlp
from model.spec.peft import Lora
from model.spec.projectors import Mlp
from model.spec.system import TRAINABLE_OUTPUTS, Stage, System

_DELIMITERS = ("<Img>", "</Img>")


def pandagpt() -> System:
    """PandaGPT (2023, arXiv:2305.16355) with Vicuna v0 13B: one token per medium, one projector.

    It has one stage, on pictures alone; PT is the same without adapters.
    """
    encoders: tuple[tuple[Modality, ImageBind], ...] = (
        ("image", imagebind_of("image")),
        ("video", imagebind_of("image")),
        ("audio", imagebind_audio(clips=3, scale=1.0)),
        ("depth", imagebind_of("depth")),
        ("thermal", imagebind_of("thermal")),
        ("imu", imagebind_of("imu")),
    )
    stage = Stage(
        trainable=(PROJECTORS, LORA),
        peft=Lora(rank=32, alpha=32, dropout=0.1, targets=ATTENTION),
        prompt="chat",
        learning_rate=5e-4,
        weight_decay=1e-3,
        warmup=0.002,
        epochs=2,
        global_batch=64,
        micro_batch=1,
        max_tokens=1024,
        recompute=True,
    )
    return System(
        name="pandagpt",
        paper="arXiv:2305.16355",
        model=ModelSpec(
            inputs=_input_branches(encoders, Mlp(depth=1), _DELIMITERS),
            backbone=vicuna_v0_13b(PANDAGPT),
        ),
        pt=replace(stage, trainable=(PROJECTORS,), peft=None, prompt="plain", epochs=1),
        sft=stage,
    )


def next_gpt() -> System:
    """NExT-GPT (2023, arXiv:2309.05519) with Vicuna v0 7B.

    Its first version: one linear layer for all modalities, as in the survey; a later one groups
    patch features first. The batch size of PT is not published. Its two alignments, of the encoding
    and of the decoding side, are one PT here. Eqs. 2, 4 and 5 weigh the same, as in the paper's
    §4.2 and the later version's code, with its min-SNR weighting for images; in IT, eq. 4 of videos
    counts double, as in the first version's.
    """
    encoders: tuple[tuple[Modality, ImageBind], ...] = (
        ("image", imagebind_of("image")),
        ("video", imagebind_of("image")),
        ("audio", imagebind_audio(clips=3)),
    )
    outputs = (
        OutputBranchSpec(modality="image", signals=4, generator=StableDiffusion(min_snr=5.0)),
        OutputBranchSpec(modality="video", signals=24, generator=TextToVideo()),
        OutputBranchSpec(modality="audio", signals=8, generator=AudioLdm()),
    )
    stage = Stage(
        trainable=(PROJECTORS, LORA, *TRAINABLE_OUTPUTS),
        peft=Lora(rank=32, alpha=32, dropout=0.1, targets=ATTENTION),
        generation=Generation(branches=(BranchWeights(modality="video", align=2.0),)),
        prompt="chat",
        learning_rate=5e-4,
        weight_decay=1e-3,
        warmup=0.1,
        global_batch=64,
        micro_batch=1,
        max_tokens=512,
        recompute=True,
    )
    return System(
        name="next_gpt",
        paper="arXiv:2309.05519",
        model=ModelSpec(
            inputs=_input_branches(encoders, Mlp(depth=1), _DELIMITERS),
            backbone=vicuna_v0_7b(PANDAGPT),
            outputs=outputs,
        ),
        pt=replace(
            stage,
            trainable=(PROJECTORS, *TRAINABLE_OUTPUTS),
            peft=None,
            generation=Generation(),
            prompt="plain",
            learning_rate=4e-4,
        ),
        sft=stage,
    )


def codi_2() -> System:
    """CoDi-2 (2023, arXiv:2311.18775) with LLaMA-2-chat 7B.

    Learning rates, batch sizes and LoRA's rank are not published; they are PandaGPT's. Nor is how
    Zeroscope and AudioLDM 2 are conditioned: here each token of their conditions has a signal token
    of its own, as the picture's embedding has. Eq. 4 stands for the published cosine.
    """
    encoders: tuple[tuple[Modality, ImageBind], ...] = (
        ("image", imagebind_of("image")),
        ("video", imagebind_of("image")),
        ("audio", imagebind_audio(clips=3)),
    )
    audio = AudioLdm2()
    outputs = (
        OutputBranchSpec(modality="image", signals=1, projector=OutputMlp(), generator=UnClip()),
        OutputBranchSpec(
            modality="video", signals=77, projector=OutputMlp(), generator=TextToVideo()
        ),
        OutputBranchSpec(
            modality="audio",
            signals=audio.generated_tokens + audio.prompt_tokens,
            projector=OutputMlp(),
            generator=audio,
        ),
    )
    stage = Stage(
        trainable=(PROJECTORS, LORA, *TRAINABLE_OUTPUTS),
        peft=Lora(rank=32, alpha=32, targets=ATTENTION),
        generation=Generation(align=0.1, denoise=1.0),
        prompt="chat",
        learning_rate=5e-4,
        global_batch=64,
        micro_batch=1,
        max_tokens=1024,
        recompute=True,
    )
    return System(
        name="codi_2",
        paper="arXiv:2311.18775",
        model=ModelSpec(
            inputs=_input_branches(
                encoders, Mlp(depth=2, norm=True), ("<Perception>", "</Perception>")
            ),
            backbone=llama_2_7b("meta-llama/Llama-2-7b-chat-hf", CODI_2),
            outputs=outputs,
        ),
        pt=replace(stage, prompt="plain"),
        sft=stage,
    )


def _input_branches(
    encoders: tuple[tuple[Modality, ImageBind], ...],
    projector: Mlp,
    delimiters: tuple[str, str],
) -> tuple[InputBranchSpec, ...]:
    """Return an input branch for each modality; all share the first one's projector.

    A video is five frames through the image trunk; frames, and clips of a sound, are averaged.
    """
    first = encoders[0][0]
    return tuple(
        InputBranchSpec(
            modality=modality,
            encoder=encoder,
            projector=projector,
            frames=5 if modality == "video" else 1,
            pool="mean" if modality in ("video", "audio") else "none",
            encoder_of="image" if modality == "video" else None,
            projector_of=first if modality != first else None,
            before=delimiters[0],
            after=delimiters[1],
        )
        for modality, encoder in encoders
    )
