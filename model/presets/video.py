"""Systems for videos: mPLUG-Owl, VideoChat, Video-LLaMA and Video-ChatGPT.

Facts and sources: docs/systems.md.
"""

from dataclasses import replace

from model.presets.blocks import (
    LORA,
    PROJECTORS,
    blip_2_qformer,
    clip_large_224,
    imagebind_audio,
    llama_7b,
    vicuna_v0_7b,
)
from model.presets.templates import MPLUG_OWL, VIDEO_CHATGPT, VIDEO_LLAMA, VIDEOCHAT
from model.spec.image import EvaClip
from model.spec.image_processor import squash
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.peft import Lora
from model.spec.projectors import Abstractor, Mlp
from model.spec.qformer import QFormer, VideoQFormer
from model.spec.system import Stage, System
from model.spec.video import TemporalClip, UniformerEva


def mplug_owl() -> System:
    """mPLUG-Owl (2023, arXiv:2304.14178) with LLaMA 7B.

    Videos, of four frames, were added in a later release, whose components are used. PT also trains
    the encoder; of its batch only the tokens are published (2.1 million), about 4096 captions.
    """
    tower = replace(
        clip_large_224(), feature_layer=-1, keep_cls=True, norm_eps=1e-6, processor=squash(224)
    )
    image = InputBranchSpec(encoder=TemporalClip(tower=tower), projector=Abstractor(temporal=True))
    video = replace(image, modality="video", frames=4, encoder_of="image", projector_of="image")
    return System(
        name="mplug_owl",
        paper="arXiv:2304.14178",
        model=ModelSpec(
            inputs=(image, video),
            backbone=llama_7b(template=MPLUG_OWL),
        ),
        pt=Stage(
            trainable=("inputs.*.encoder.*", PROJECTORS),
            prompt="plain",
            learning_rate=1e-4,
            warmup=0.04,
            global_batch=4096,
            micro_batch=32,
            max_tokens=1024,
            recompute=True,
        ),
        sft=Stage(
            trainable=(LORA,),
            peft=Lora(rank=8, alpha=32, targets=("q_proj", "v_proj")),
            prompt="chat",
            learning_rate=2e-5,
            weight_decay=1e-4,
            warmup=0.012,
            epochs=3,
            global_batch=256,
            micro_batch=4,
            recompute=True,
        ),
    )


def videochat() -> System:
    """VideoChat-Embed (2023, arXiv:2305.06355) with Vicuna v0 7B; its 13B has StableVicuna.

    96 queries, 64 of them new, attend to all frames at once. Both stages train the new queries, the
    attention over frames in the encoder's last eight layers, the norm after the encoder and the
    linear head, on eight frames (published: four in PT).
    """
    projector = replace(blip_2_qformer(published=True), extra_queries=64, joint=True)
    stage = Stage(
        trainable=(
            "inputs.*.encoder.token.*",
            "inputs.*.encoder.aggregators.*",
            "inputs.*.encoder.tower.post_layernorm.*",
            "inputs.*.projector.qformer.extra_queries.*",
            "inputs.*.projector.head.*",
        ),
        prompt="chat",
        learning_rate=2e-5,
        weight_decay=0.02,
        warmup=0.2,
        epochs=3,
        global_batch=32,
        micro_batch=1,
        max_tokens=1024,
        recompute=True,
    )
    return System(
        name="videochat",
        paper="arXiv:2305.06355",
        model=ModelSpec(
            inputs=_video_and_image(UniformerEva(), projector),
            backbone=vicuna_v0_7b(VIDEOCHAT),
        ),
        pt=replace(
            stage,
            prompt="plain",
            learning_rate=1e-4,
            epochs=1,
            global_batch=1024,
            micro_batch=32,
            max_tokens=256,
        ),
        sft=stage,
    )


def video_llama() -> System:
    """Video-LLaMA (2023, arXiv:2306.02858) with Vicuna v0 7B: a video and an audio branch.

    A picture is a video of one frame. The original trains its two branches one after the other,
    here they are trained together; its linear layer starts from MiniGPT-4's, here it is new. Audio
    is eight clips of 2 s; the published batch sizes are per GPU, of which 8 are assumed.
    """
    frames = VideoQFormer(frame=blip_2_qformer(published=True))
    audio = VideoQFormer(
        frame=None, whole=QFormer(layers=2, cross_attention_frequency=1, queries=8), max_segments=8
    )
    stage = Stage(
        trainable=(
            "inputs.*.projector.positions.*",
            "inputs.*.projector.whole.*",
            "inputs.*.projector.head.*",
        ),
        prompt="chat",
        learning_rate=3e-5,
        weight_decay=0.05,
        warmup=0.33,
        global_batch=32,
        micro_batch=4,
        max_tokens=512,
        recompute=True,
    )
    return System(
        name="video_llama",
        paper="arXiv:2306.02858",
        model=ModelSpec(
            inputs=(
                *_video_and_image(EvaClip(), frames),
                InputBranchSpec(
                    modality="audio", encoder=imagebind_audio(clips=8), projector=audio
                ),
            ),
            backbone=vicuna_v0_7b(VIDEO_LLAMA),
        ),
        pt=replace(
            stage,
            prompt="plain",
            learning_rate=1e-4,
            warmup=0.2,
            global_batch=256,
            micro_batch=32,
            max_tokens=256,
        ),
        sft=stage,
    )


def _video_and_image(
    encoder: EvaClip | UniformerEva, projector: QFormer | VideoQFormer
) -> tuple[InputBranchSpec, InputBranchSpec]:
    """Return input branches for videos of eight frames and, with the same modules, for pictures."""
    video = InputBranchSpec(
        modality="video",
        encoder=encoder,
        projector=projector,
        frames=8,
        before="<Video>",
        after="</Video>",
    )
    image = InputBranchSpec(
        encoder=encoder,
        projector=projector,
        encoder_of="video",
        projector_of="video",
        before="<Image>",
        after="</Image>",
    )
    return video, image


def video_chatgpt() -> System:
    """Video-ChatGPT (2023, arXiv:2306.05424) with LLaVA-Lightning's Vicuna v1.1 7B.

    A hundred frames become 356 tokens. It has no PT but starts from LLaVA's projector; here PT is
    the same stage on captions.
    """
    stage = Stage(
        trainable=(PROJECTORS,),
        prompt="chat",
        learning_rate=2e-5,
        epochs=3,
        global_batch=32,
        micro_batch=4,
        recompute=True,
    )
    frames = replace(squash(224), resample="nearest")
    return System(
        name="video_chatgpt",
        paper="arXiv:2306.05424",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(
                    modality="video",
                    encoder=replace(clip_large_224(), processor=frames),
                    projector=Mlp(depth=1),
                    frames=100,
                    pool="spatial_temporal",
                    before="<vid_start>",
                    after="<vid_end>",
                ),
            ),
            backbone=llama_7b("lmsys/vicuna-7b-v1.1", VIDEO_CHATGPT),
        ),
        pt=replace(stage, prompt="plain", learning_rate=2e-3, epochs=1, global_batch=128),
        sft=stage,
    )
