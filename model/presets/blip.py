"""BLIP-2 and systems with its Q-Former: InstructBLIP, X-InstructBLIP, DLP; and DRESS.

Facts and sources: docs/systems.md.
"""

from dataclasses import replace

from model.presets.blocks import (
    LORA,
    PROJECTORS,
    blip_2_qformer,
    flan_t5_xl,
    flan_t5_xxl,
    llama_7b,
    opt_2_7b,
    opt_6_7b,
    vicuna_13b,
)
from model.presets.templates import INSTRUCTBLIP, X_INSTRUCTBLIP
from model.spec.audio import Beats
from model.spec.backbones import T5, Llama, Opt
from model.spec.chat_template import ChatTemplate
from model.spec.image import EvaClip
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.peft import Lora
from model.spec.pformer import PFormer, Reference
from model.spec.points import PointBert
from model.spec.projectors import Mlp
from model.spec.qformer import QFormer
from model.spec.system import InitStage, Stage, System


def blip_2() -> System:
    """BLIP-2 (2023, arXiv:2301.12597) with OPT 6.7B.

    Init trains the Q-Former on pictures and texts. BLIP-2 has no instruction tuning; SFT continues
    PT with its prompt for questions. It trains the layer norm after the encoder, which is part of
    the encoder here, and frozen.
    """
    return _blip_2("blip_2", opt_6_7b(), batch=1920, micro=16)


def blip_2_flan_t5_xxl() -> System:
    """BLIP-2 (2023, arXiv:2301.12597) with Flan-T5 XXL; see `blip_2`."""
    return _blip_2("blip_2_flan_t5_xxl", flan_t5_xxl(), batch=1520, micro=19)


def _blip_2(name: str, backbone: Opt | T5, *, batch: int, micro: int) -> System:
    stage = Stage(
        trainable=(PROJECTORS,),
        prompt="plain",
        learning_rate=1e-4,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        warmup=0.025,
        global_batch=batch,
        micro_batch=micro,
        max_tokens=128,
        recompute=True,
    )
    return System(
        name=name,
        paper="arXiv:2301.12597",
        model=ModelSpec(
            inputs=(InputBranchSpec(encoder=EvaClip(), projector=blip_2_qformer()),),
            backbone=backbone,
        ),
        init=(_image_text(batch=1680, warmup=0.008),),
        pt=stage,
        sft=replace(stage, prompt="chat", learning_rate=1e-5, max_tokens=256),
    )


def _image_text(*, batch: int, warmup: float) -> InitStage:
    """Return BLIP-2's stage 1: contrastive learning, matching and generation of captions (§3.2)."""
    return InitStage(
        objective=ImageTextInit(),
        trainable=("inputs.image.projector.qformer.*", "heads.*"),
        prompt="plain",
        learning_rate=1e-4,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        warmup=warmup,
        global_batch=batch,
        micro_batch=8,
        max_tokens=128,
    )


def dlp() -> System:
    """DLP (2023, arXiv:2307.07063) with OPT 2.7B: BLIP-2 with a P-Former as training target.

    Init trains the P-Former on sentences alone, then the Q-Former and its head against it.
    """
    whole = _blip_2("dlp", opt_2_7b(), batch=1024, micro=16)
    former = PFormer()
    image_text = replace(
        _image_text(batch=1024, warmup=0.025),
        trainable=(PROJECTORS, "heads.*"),
        epochs=10,
        reference=Reference(pformer=former, weight=10.0),
    )
    sentences = replace(
        image_text,
        objective=SentenceInit(pformer=former),
        trainable=("reference.*", "heads.sentences.*", "heads.temperature.*"),
        reference=None,
        prompt="sentences",
        global_batch=384,
        epochs=5,
        recompute=True,
    )
    pt = replace(whole.stage("pt"), epochs=10, reference=Reference(pformer=former, weight=100.0))
    return replace(whole, paper="arXiv:2307.07063", init=(sentences, image_text), pt=pt)


def instructblip() -> System:
    """InstructBLIP (2023, arXiv:2305.06500) with Vicuna v1.1 7B; its Q-Former reads the question.

    Videos are four frames, each encoded and projected like a picture.
    """
    return _instructblip("instructblip", _vicuna_1_1(INSTRUCTBLIP), batch=128)


def instructblip_flan_t5_xl() -> System:
    """InstructBLIP (2023, arXiv:2305.06500) with Flan-T5 XL; see `instructblip`."""
    backbone = replace(flan_t5_xl(), template=INSTRUCTBLIP)
    return _instructblip("instructblip_flan_t5_xl", backbone, batch=192)


def _vicuna_1_1(template: ChatTemplate) -> Llama:
    return llama_7b("lmsys/vicuna-7b-v1.1", template)


def _instructblip(name: str, backbone: Llama | T5, *, batch: int) -> System:
    aware = QFormer(instruction=True)
    stage = Stage(
        trainable=(PROJECTORS,),
        prompt="chat",
        learning_rate=1e-5,
        weight_decay=0.05,
        warmup=0.017,
        global_batch=batch,
        micro_batch=16,
        max_tokens=512,
        recompute=True,
    )
    return System(
        name=name,
        paper="arXiv:2305.06500",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(encoder=EvaClip(), projector=aware),
                InputBranchSpec(
                    modality="video",
                    encoder=EvaClip(),
                    projector=aware,
                    frames=4,
                    encoder_of="image",
                    projector_of="image",
                ),
            ),
            backbone=backbone,
        ),
        pt=replace(stage, prompt="plain", learning_rate=1e-4, global_batch=1920, micro_batch=16),
        sft=stage,
    )


def x_instructblip() -> System:
    """X-InstructBLIP (2023, arXiv:2311.18799) with Vicuna v1.1 7B: a Q-Former for each modality.

    The published system trains each modality in a run of its own; here they are mixed. It has one
    stage, which is both PT and SFT.
    """
    stage = Stage(
        trainable=(PROJECTORS,),
        prompt="chat",
        learning_rate=1e-5,
        weight_decay=0.05,
        warmup=0.015,
        global_batch=64,
        micro_batch=8,
        max_tokens=768,
        recompute=True,
    )
    aware = QFormer(instruction=True, norm_features=True)
    return System(
        name="x_instructblip",
        paper="arXiv:2311.18799",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(encoder=EvaClip(), projector=aware, before="image: "),
                InputBranchSpec(
                    modality="video",
                    encoder=EvaClip(),
                    projector=aware,
                    frames=5,
                    encoder_of="image",
                    before="video: ",
                ),
                InputBranchSpec(
                    modality="audio",
                    encoder=Beats(weights="BEATs_iter3_plus_AS2M.pt"),
                    projector=aware,
                    before="audio: ",
                ),
                InputBranchSpec(
                    modality="points",
                    encoder=PointBert(weights="ULIP-2-PointBERT-8k-xyz-pc-vit_g-objaverse.pt"),
                    projector=aware,
                    before="3d: ",
                ),
            ),
            backbone=_vicuna_1_1(X_INSTRUCTBLIP),
        ),
        pt=stage,
        sft=stage,
    )


def dress() -> System:
    """DRESS (2023, arXiv:2311.10081) with Vicuna v1.5 13B, up to its feedback stage.

    Learning rates, batch sizes, LoRA's rank and the number of tokens are not published: rates and
    rank are MiniGPT-v2's, and all tokens of the encoder are used.
    """
    stage = Stage(
        trainable=(PROJECTORS,),
        prompt="plain",
        learning_rate=1e-4,
        weight_decay=0.05,
        global_batch=96,
        micro_batch=12,
        recompute=True,
    )
    return System(
        name="dress",
        paper="arXiv:2311.10081",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(
                    encoder=EvaClip(), projector=Mlp(depth=1), before="<Img>", after="</Img>"
                ),
            ),
            backbone=vicuna_13b(),
        ),
        pt=stage,
        sft=replace(
            stage,
            trainable=(PROJECTORS, LORA),
            peft=Lora(rank=64, alpha=16, targets=("q_proj", "v_proj")),
            prompt="chat",
            learning_rate=1e-5,
            global_batch=64,
            micro_batch=8,
        ),
    )
